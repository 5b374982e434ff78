"""Transfer a style to images, in one pass through a decoder (AdaIN) or by optimising the pixels (Gatys et al. 2016)."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.resizing import limit_pixels
from imagemill.models.style_statistics import adain, content_loss, gram, moments, standard_unit, standardise, style_loss
from imagemill.models.style_texture import StyleTexture, add_texture, measure_texture
from imagemill.models.style_transport import build_transport, symmetric_power
from imagemill.models.tiling import apply_tiled

TILE = 1024
STATISTICS_PIXELS = 1_000_000
"""Moments of larger images are computed on a copy that is reduced to this size."""
MAX_OFFSET = 1024
"""Images begin at random rows and columns of the style's texture, below this number."""
ADAM_RATE = 0.03


@dataclass(frozen=True)
class StyleTarget:
    """The statistics of a style: one style for all images of a batch, or one for each.

    Attributes:
        layers: moments (B,d,1,1) of the first layer of each block, and of the layers of the style loss.
        grams: Gram matrices (B,d,d) of the standardised features of the layers of the style loss.
        weights: w_i / mean(G_S²) of these layers, (B,), so that the loss of a layer does not depend on its channel count.
        roots: square roots of the covariances (B,d,d) of the first layer of each block, for `transform="covariance"`.
        texture: colours and detail of the style, for `transform="covariance"`.
    """

    layers: dict[str, tuple[Tensor, Tensor]]
    grams: dict[str, Tensor]
    weights: dict[str, Tensor]
    roots: dict[str, Tensor]
    texture: StyleTexture | None


CodeTransform = Callable[[Tensor], Tensor]
"""Maps a layer of a code (B,d,h,w) to the restyled layer."""


def build_style_target(
    network: Perceptual, styles: Sequence[Tensor], layers: Mapping[str, float], style_weights: Sequence[float]
) -> StyleTarget:
    """Compute the mean statistics of several styles.

    Args:
        network: the network whose features are measured.
        styles: batches (B,3,H,W) float in [0,1], each with its own size.
        layers: the layers of the style loss and their weights.
        style_weights: one weight for each style.
    """
    with torch.no_grad():
        features = [network.features(x_BCHW, {*network.first_layers, *layers}) for x_BCHW in styles]
        means, stds = (
            {name: weighted_mean([moments(f[name])[i] for f in features], style_weights) for name in features[0]}
            for i in (0, 1)
        )
        style_moments = {name: (means[name], stds[name]) for name in features[0]}
        is_covariance = network.transform == "covariance"
        grams = {
            name: weighted_mean([gram(standardise(f[name], style_moments[name])) for f in features], style_weights)
            for name in {**layers, **dict.fromkeys(network.first_layers if is_covariance else ())}
        }
        roots = {
            name: symmetric_power(unit * grams[name] * unit.transpose(1, 2), 0.5)
            for name in (network.first_layers if is_covariance else ())
            for unit in [standard_unit(style_moments[name]).flatten(2)]
        }
    weights = {name: w / gram_energy(grams[name]) for name, w in layers.items() if w}
    texture = measure_texture(styles, style_weights) if is_covariance else None
    return StyleTarget(style_moments, {name: grams[name] for name in layers}, weights, roots, texture)


def weighted_mean(tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return Σ w·t / Σ w over tensors of one shape."""
    total = torch.stack([weight * tensor for weight, tensor in zip(weights, tensors, strict=True)]).sum(0)
    return total / sum(weights)


def gram_energy(gram_Bdd: Tensor) -> Tensor:
    """Return the mean square of Gram matrices, (B,), and at least a tenth of that of d independent channels.

    The lower limit is for a style without structure, whose energy is 0.
    """
    return gram_Bdd.square().mean((1, 2)).clamp_min(0.1 / gram_Bdd.shape[1])


class StyleTransfer(Autoencoder):
    """A perceptual network and the style that it paints in.

    Args:
        network: the network; `decode` needs its decoder.
        target: statistics of the style.
        content_layer: the layer of the content loss.
    """

    def __init__(self, network: Perceptual, target: StyleTarget, content_layer: str) -> None:
        super().__init__()
        self.network, self.target, self.content_layer = network, target, content_layer
        self.stride, self.halo = network.stride, network.halo

    def encode(self, x_BCHW: Tensor) -> list[Tensor]:
        """Map images (B,3,H,W) to the code of the restyled image."""
        y = self.network.encode(self.prepare(x_BCHW, [0] * len(x_BCHW), 1.0))
        return restyle(y, self.build_transforms(y), 1.0)

    def decode(self, y: Sequence[Tensor]) -> Tensor:
        """Map a code to images (B,3,H,W)."""
        return self.network.decode(y)

    def prepare(self, x_BCHW: Tensor, seeds: Sequence[int], strength: float | Tensor) -> Tensor:
        """Return the images that the network encodes: with the texture of the style in flat regions, if it needs that.

        Args:
            x_BCHW: content images (B,3,H,W) in [0,1].
            seeds: one seed for each image, for the place in the style from which its texture comes.
            strength: 0 returns the images; for all images, or (B,1,1,1).
        """
        if self.target.texture is None:
            return x_BCHW
        generators = [random.Random(seed) for seed in seeds]
        offsets = [(each.randrange(MAX_OFFSET), each.randrange(MAX_OFFSET)) for each in generators]
        return add_texture(x_BCHW, self.target.texture, offsets, strength)

    def build_transforms(self, y: Sequence[Tensor]) -> list[CodeTransform]:
        """Return the transform of each layer that gives a code the statistics of the style."""
        names = self.network.first_layers
        if self.network.transform == "moments":
            styles = [self.target.layers[name] for name in names]
            own = [moments(layer) for layer in y]
            return [partial(adain, content_moments=c, style_moments=s) for c, s in zip(own, styles, strict=True)]
        return [
            build_transport(layer, self.target.layers[name][0].flatten(2), self.target.roots[name])
            for name, layer in zip(names, y, strict=True)
        ]

    def losses(self, t_BCHW: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """Return the content loss and the style loss of images, (B,) each, in units of a = Σ C_c².

        In these units, the weights α and β mean the same for every network, layer and image size.

        Args:
            t_BCHW: images (B,3,H,W) in [0,1].
            content: features (B,d,h,w) of the content images at the content layer.
        """
        features = self.network.features(t_BCHW, {self.content_layer, *self.target.weights})
        energy_B = content.float().square().flatten(1).sum(1).clamp_min(1e-6)
        grams = {name: gram(standardise(features[name], self.target.layers[name])) for name in self.target.weights}
        return (
            content_loss(features[self.content_layer], content) / energy_B,
            style_loss(grams, self.target.grams, self.target.weights),
        )


def restyle(y: Sequence[Tensor], transforms: Sequence[CodeTransform], strength: float | Tensor) -> list[Tensor]:
    """Apply the transforms to every layer of a code, so that colours and strokes of all sizes are transferred.

    Args:
        y: the code.
        transforms: of each layer, from `StyleTransfer.build_transforms`.
        strength: 0 keeps the code, 1 transfers the style fully; for all images, or (B,1,1,1).
    """
    restyled = []
    for features, transform in zip(y, transforms, strict=True):
        # `lerp` needs tensors of one number format.
        weight = strength.to(features.dtype) if isinstance(strength, Tensor) else strength
        restyled.append(torch.lerp(features, transform(features).to(features.dtype), weight))
    return restyled


def transfer_style(transfer: StyleTransfer, x_BCHW: Tensor, seeds: Sequence[int], strength: float) -> Tensor:
    """Restyle images in one pass; large ones in tiles, which all use the statistics of the whole image.

    Args:
        transfer: network and style.
        x_BCHW: content images (B,3,H,W) in [0,1].
        seeds: one seed for each image.
        strength: 0 keeps the images, 1 transfers the style fully.
    """
    network = transfer.network
    x_BCHW = transfer.prepare(x_BCHW, seeds, strength)
    reduced = limit_pixels(x_BCHW, STATISTICS_PIXELS, transfer.stride)
    y = network.encode(reduced)
    transforms = transfer.build_transforms(y)
    # The code of an image that is not cut into tiles is not computed again.
    code = y if reduced is x_BCHW else None
    del y, reduced

    def restyle_tile(tile: Tensor) -> Tensor:
        y = code if code is not None and tile.shape[2:] == x_BCHW.shape[2:] else network.encode(tile)
        return transfer.decode(restyle(y, transforms, strength))

    return apply_tiled(restyle_tile, x_BCHW, TILE, transfer.halo)


def optimise_images(
    transfer: StyleTransfer,
    x_BCHW: Tensor,
    seeds: Sequence[int],
    *,
    alpha: float,
    beta: float,
    steps: int,
    optimizer: Literal["lbfgs", "adam"],
    start: Literal["content", "noise"],
    report_progress: Callable[[], None] | None = None,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Minimise α·content loss + β·style loss over the pixels of images (Gatys et al. 2016).

    Adam scales the step of each pixel by itself, so several images are optimised together and do not influence each other.
    L-BFGS chooses one step length for all its variables, so it gets one image at a time.

    Args:
        transfer: network and style.
        x_BCHW: content images (B,3,H,W) in [0,1].
        seeds: one seed for each image, used if the start is noise.
        alpha: weight of the content loss.
        beta: weight of the style loss.
        steps: steps of the optimiser.
        optimizer: "lbfgs" or "adam".
        start: "content" or "noise".
        report_progress: called after each evaluation of the losses.

    Returns:
        The images (B,3,H,W) in [0,1], and for each image its final losses and the curve of the total loss.
    """
    if optimizer == "lbfgs" and len(x_BCHW) > 1:
        options: dict[str, Any] = {"alpha": alpha, "beta": beta, "steps": steps, "optimizer": optimizer, "start": start}
        options["report_progress"] = report_progress
        results = [optimise_images(transfer, x[None], [seed], **options) for x, seed in zip(x_BCHW, seeds, strict=True)]
        return torch.cat([image for image, _ in results]), [columns[0] for _, columns in results]
    with torch.no_grad():
        content = transfer.network.features(x_BCHW, {transfer.content_layer})[transfer.content_layer].float()
        # L-BFGS accepts only contiguous tensors.
        target = x_BCHW.clone(memory_format=torch.contiguous_format)
        if start == "noise":
            for image, seed in zip(target, seeds, strict=True):
                image.copy_(torch.rand(image.shape, generator=torch.Generator().manual_seed(seed % 2**63)))
    curve: list[Tensor] = []
    # Optimisers ignore gradients below an absolute size, so small α and β are scaled up together.
    unit = min(1.0, max(alpha, beta))

    def closure() -> Tensor:
        target.grad = None
        content_B, style_B = transfer.losses(target, content)
        total_B = alpha / unit * content_B + beta / unit * style_B
        (target.grad,) = torch.autograd.grad(total_B.sum(), target)
        curve.append(total_B.detach() * unit)
        if report_progress:
            report_progress()
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
            # The learning rate falls to 0; a constant rate would leave noise in the image.
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
            for _ in range(steps):
                adam.step(closure)
                schedule.step()
                with torch.no_grad():
                    target.clamp_(0, 1)
    with torch.no_grad():
        image = target.detach().clamp_(0, 1)
        content_B, style_B = transfer.losses(image, content)
    curves = torch.stack([*curve, alpha * content_B + beta * style_B], 1).tolist()
    return image, [
        {"content_loss": c, "style_loss": s, "losses": losses}
        for c, s, losses in zip(content_B.tolist(), style_B.tolist(), curves, strict=True)
    ]
