"""A perceptual network that knows which style to paint: in one pass, or by optimising the image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.resizing import limit_pixels
from imagemill.models.style_statistics import adain, content_loss, gram, moments, standardise, style_loss
from imagemill.models.tiling import apply_tiled

TILE = 1024
SEEN_PIXELS = 1_000_000
"""Statistics of larger images are those of a copy reduced to this."""
ADAM_RATE = 0.03


@dataclass(frozen=True)
class StyleTarget:
    """What style asks for: one for all images, or one for each image of a batch."""

    layers: dict[str, tuple[Tensor, Tensor]]
    """Moments (B,d,1,1) of the first layer of each block, and of those where style is measured."""
    grams: dict[str, Tensor]
    """Of the standardised features of the layers where style is measured, (B,d,d)."""
    weights: dict[str, Tensor]
    """w_i / mean(G_S²) of each, (B,): so a layer's loss does not hang on how many channels it has."""


def build_style_target(
    net: Perceptual, styles: Sequence[Tensor], layers: Mapping[str, float], shares: Sequence[float]
) -> StyleTarget:
    """What styles (B,3,H,W) in [0,1], each of its own size, ask for together.

    Args: layers: weights of the layers where style is measured. shares: weights of the styles.
    """
    with torch.no_grad():
        found = [net.features(x_BCHW, {*net.first_layers, *layers}) for x_BCHW in styles]
        means, stds = (
            {name: weighted_mean([moments(f[name])[i] for f in found], shares) for name in found[0]} for i in (0, 1)
        )
        own = {name: (means[name], stds[name]) for name in found[0]}
        grams = {name: weighted_mean([gram(standardise(f[name], own[name])) for f in found], shares) for name in layers}
    weights = {name: w / gram_energy(grams[name]) for name, w in layers.items() if w}
    return StyleTarget(own, grams, weights)


def weighted_mean(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted mean of what several styles have."""
    total = torch.stack([share * each for share, each in zip(shares, tensors, strict=True)]).sum(0)
    return total / sum(shares)


def gram_energy(gram_Bdd: Tensor) -> Tensor:
    """(B,) mean square of Gram matrices; of a flat style, which has none, a tenth of what channels that differ have."""
    return gram_Bdd.square().mean((1, 2)).clamp_min(0.1 / gram_Bdd.shape[1])


class StyleTransfer(Autoencoder):
    """A perceptual network and what its style asks for; content is measured at `content_layer`."""

    def __init__(self, net: Perceptual, target: StyleTarget, content_layer: str) -> None:
        super().__init__()
        self.net, self.target, self.content_layer = net, target, content_layer
        self.stride, self.halo = net.stride, net.halo

    def encode(self, x_BCHW: Tensor) -> list[Tensor]:
        return self.restyled(self.net.encode(x_BCHW), self.statistics(x_BCHW), 1.0)

    def decode(self, y: Sequence[Tensor]) -> Tensor:
        return self.net.decode(y)

    def statistics(self, x_BCHW: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Moments of each layer of the images' codes; of large ones from a reduced copy, so that every tile has the same."""
        return [moments(features) for features in self.net.encode(limit_pixels(x_BCHW, SEEN_PIXELS, self.stride))]

    def restyled(self, y: Sequence[Tensor], own: Sequence[tuple[Tensor, Tensor]], strength: float) -> list[Tensor]:
        """AdaIN on every layer of a code, so that colours and strokes of each size come over."""
        wanted = (self.target.layers[name] for name in self.net.first_layers)
        return [
            torch.lerp(features, adain(features, mine, style).to(features.dtype), strength)
            for features, mine, style in zip(y, own, wanted, strict=True)
        ]

    def losses(self, t_BCHW: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) content and style loss of images beside the content's features, both in units of a = Σ C_c².

        So α and β mean the same for every network, layer and size of image.
        """
        found = self.net.features(t_BCHW, {self.content_layer, *self.target.weights})
        energy_B = content.float().square().flatten(1).sum(1).clamp_min(1e-6)
        grams = {name: gram(standardise(found[name], self.target.layers[name])) for name in self.target.weights}
        return (
            content_loss(found[self.content_layer], content) / energy_B,
            style_loss(grams, self.target.grams, self.target.weights),
        )


def transfer_style(stylist: StyleTransfer, x_BCHW: Tensor, strength: float) -> Tensor:
    """One pass over images (B,3,H,W) in [0,1], large ones in tiles; every tile has the statistics of the whole image."""
    own = stylist.statistics(x_BCHW)
    return apply_tiled(
        lambda piece: stylist.decode(stylist.restyled(stylist.net.encode(piece), own, strength)), x_BCHW, TILE, stylist.halo
    )


def optimise_images(
    stylist: StyleTransfer,
    x_BCHW: Tensor,
    seeds: Sequence[int],
    *,
    alpha: float,
    beta: float,
    steps: int,
    optimizer: Literal["lbfgs", "adam"],
    start: Literal["content", "noise"],
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Images whose pixels alone are changed so that α·content + β·style falls (Gatys et al. 2016), and their losses.

    Adam's steps are of each pixel by itself, so images are optimised together and none depends on another. L-BFGS chooses
    one length of step for all that it is given, so it is given one image at a time.
    """
    if optimizer == "lbfgs" and len(x_BCHW) > 1:
        how: dict[str, Any] = {"alpha": alpha, "beta": beta, "steps": steps, "optimizer": optimizer, "start": start}
        each = [optimise_images(stylist, x[None], [seed], **how) for x, seed in zip(x_BCHW, seeds, strict=True)]
        return torch.cat([image for image, _ in each]), [columns[0] for _, columns in each]
    with torch.no_grad():
        content = stylist.net.features(x_BCHW, {stylist.content_layer})[stylist.content_layer].float()
        target = x_BCHW.clone(memory_format=torch.contiguous_format)  # L-BFGS takes no other
        if start == "noise":
            for image, seed in zip(target, seeds, strict=True):
                image.copy_(torch.rand(image.shape, generator=torch.Generator().manual_seed(seed % 2**63)))
    curve: list[Tensor] = []
    # Optimisers pass over what is below some absolute size: α and β that are both small are enlarged together.
    unit = min(1.0, max(alpha, beta))

    def closure() -> Tensor:
        target.grad = None
        content_B, style_B = stylist.losses(target, content)
        total_B = alpha / unit * content_B + beta / unit * style_B
        (target.grad,) = torch.autograd.grad(total_B.sum(), target)
        curve.append(total_B.detach() * unit)
        return total_B.detach().sum()

    with torch.enable_grad():
        target.requires_grad_()
        if optimizer == "lbfgs":
            lbfgs = torch.optim.LBFGS(
                [target],
                max_iter=steps,
                max_eval=steps,
                tolerance_grad=0,
                tolerance_change=0,
                line_search_fn="strong_wolfe",
            )
            lbfgs.step(closure)
        else:
            adam = torch.optim.Adam([target], lr=ADAM_RATE)
            # Full steps to the end would leave their noise in the picture.
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
            for _ in range(steps):
                adam.step(closure)
                schedule.step()
                with torch.no_grad():
                    target.clamp_(0, 1)
    with torch.no_grad():
        image = target.detach().clamp_(0, 1)
        content_B, style_B = stylist.losses(image, content)
    curves = torch.stack([*curve, alpha * content_B + beta * style_B], 1).tolist()
    return image, [
        {"content_loss": c, "style_loss": s, "losses": line}
        for c, s, line in zip(content_B.tolist(), style_B.tolist(), curves, strict=True)
    ]
