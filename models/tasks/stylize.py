"""Stylize: the content of an image, painted as one or several style images are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from models.architectures.perceptual import Perceptual
from models.autoencoder import Autoencoder
from models.checkpoint import CheckpointError
from models.colour import YCBCR, luma_8, recolour
from models.losses import psnr_loss
from models.precision import Precision
from models.style import adain, content_loss, gram, moments, standardised, style_loss
from models.tasks.task import Output, Params, Sample, Task, pad_to, to_batch, to_uint8
from models.tiling import tiled

TILE = 1024
SEEN_PIXELS = 1_000_000
"""Statistics of larger images are those of a copy reduced to this."""
STYLE_SIDE = 512
"""Long side to which a style is reduced: it sets how large its strokes are."""
GATYS_SIDE = 512
GATYS_PIXELS = {"cpu": 600_000, "cuda": 16_000_000}
"""Optimised together; each takes about a kilobyte for the features of the small network, five for VGG-19's."""
ADAM_RATE = 0.03
IDENTITY_SHARE = 0.25
"""Of training crops that are their own style."""
FITS = {"gatys": ("alpha", "beta", "steps", "optimizer", "start"), "adain": ("strength",)}


class StylizeParams(Params):
    style: list[str] = Field(min_length=1, description="files or s3:// URLs of style images")
    style_weights: list[float] | None = Field(None, description="of the styles, one each; equal when absent")
    method: Literal["adain", "gatys"] = Field(
        "adain", description="adain: one pass through a trained network; gatys: the image itself is optimised"
    )
    size: int | None = Field(
        None, ge=16, le=16384, description=f"larger images are reduced to this long side; {GATYS_SIDE} for gatys when absent"
    )
    preserve_color: bool = Field(False, description="transfer luminance alone: the colours stay those of the image")
    strength: float = Field(1.0, ge=0, le=1, description="adain: between the image, 0, and its full restyling, 1")
    alpha: float = Field(1.0, ge=0, allow_inf_nan=False, description="gatys: weight of the content loss")
    beta: float = Field(1.0, ge=0, allow_inf_nan=False, description="gatys: weight of the style loss")
    steps: int = Field(150, ge=1, le=100_000, description="gatys: steps of the optimiser")
    optimizer: Literal["lbfgs", "adam"] = Field(
        "lbfgs", description="gatys: lbfgs does one image at a time; adam several together, and needs many more steps"
    )
    start: Literal["content", "noise"] = Field("content", description="gatys: what the optimised image begins as")
    content_layer: str | None = Field(None, description="where content is measured; relu4_1, or the last layer, when absent")
    style_layers: dict[str, float] | None = Field(
        None, description="weights of the layers where style is measured; 1 for the first of each block when absent"
    )

    @field_validator("style_weights", "style_layers")
    @classmethod
    def weights_are_usable(cls, value: Any) -> Any:
        weights = list(value.values()) if isinstance(value, dict) else value
        if weights is not None and not (all(w >= 0 and math.isfinite(w) for w in weights) and sum(weights) > 0):
            raise ValueError("weights are finite, not negative, and not all zero")
        return value

    @model_validator(mode="after")
    def belong_together(self) -> "StylizeParams":
        if self.style_weights is not None and len(self.style_weights) != len(self.style):
            raise ValueError(f"{len(self.style_weights)} style_weights for {len(self.style)} styles")
        if self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0: there is nothing to optimise")
        if self.method == "gatys" and (self.size or 0) > 4096:
            raise ValueError(f"size = {self.size}: gatys holds every feature in memory; 4096 is the most")
        for method, keys in FITS.items():
            changed = [key for key in keys if getattr(self, key) != type(self).model_fields[key].default]
            if method != self.method and changed:
                raise ValueError(f"{changed[0]} is a parameter of {method}, and the method is {self.method}")
        return self


@dataclass(frozen=True)
class Target:
    """What a run's styles ask for; one for all images."""

    moments: tuple[Tensor, Tensor]
    """Of the last layer, (1,d,1,1)."""
    layers: dict[str, tuple[Tensor, Tensor]]
    """Moments of the layers where style is measured, (1,d,1,1)."""
    grams: dict[str, Tensor]
    """Of their standardised features, (1,d,d)."""
    weights: dict[str, float]
    """w_i / mean(G_S²) of each: so a layer's loss does not hang on how many channels it has."""


class Stylist(Autoencoder):
    """A perceptual network that knows which style to paint."""

    def __init__(self, net: Perceptual, target: Target, content_layer: str) -> None:
        super().__init__()
        self.net, self.target, self.content_layer = net, target, content_layer
        self.stride, self.halo = net.stride, net.halo

    def encode(self, x_BCHW: Tensor) -> Tensor:
        return self.restyled(self.net.encode(x_BCHW), self.statistics(x_BCHW), 1.0)

    def decode(self, y: Tensor) -> Tensor:
        return self.net.decode(y)

    def statistics(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Moments of the images' own features; of large ones from a reduced copy, so that every tile has the same."""
        return moments(self.net.encode(reduced(x_BCHW, self.stride)))

    def restyled(self, y: Tensor, own: tuple[Tensor, Tensor], strength: float) -> Tensor:
        return torch.lerp(y, adain(y, own, self.target.moments).to(y.dtype), strength)

    def losses(self, t_BCHW: Tensor, content: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) content and style loss of images beside the content's features, both in units of a = Σ C_c².

        So α and β mean the same for every network, layer and size of image.
        """
        found = self.net.features(t_BCHW, {self.content_layer, *self.target.weights})
        energy = content.square().flatten(1).sum(1).clamp_min(1e-6)
        grams = {name: gram(standardised(found[name], self.target.layers[name])) for name in self.target.weights}
        return (
            content_loss(found[self.content_layer], content) / energy,
            style_loss(grams, self.target.grams, self.target.weights),
        )


class Stylize(Task):
    name = "stylize"
    default_checkpoint = "stylize-small"
    Params = StylizeParams
    columns = {"content_loss": float, "style_loss": float, "losses": list[float]}
    reference_param = "style"
    least_reference_side = 32

    def freeze(self, model: Autoencoder) -> None:
        """The encoder: what measures must not learn to be pleased."""
        assert isinstance(model, Perceptual)
        model.encoder.requires_grad_(False)

    def loss(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What `gatys` minimises, of what one pass makes of each crop in the style of another; of its logarithm the mean."""
        assert isinstance(model, Perceptual)
        defaults = StylizeParams.model_fields
        content, style = x_BCHW, x_BCHW.roll(1, 0)
        own = int(len(x_BCHW) * IDENTITY_SHARE)
        style = torch.cat([content[:own], style[own:]])
        with torch.no_grad():
            features, wanted = (model.features(x, model.layers) for x in (content, style))
            y, last = features[model.layers[-1]], model.layers[-1]
            layers = {name: moments(wanted[name]) for name in model.first_layers}
            grams = {name: gram(standardised(wanted[name], own)) for name, own in layers.items()}
            weights = {name: 1 / energy_of(g) for name, g in grams.items()}
            target = adain(y, moments(y), moments(wanted[last])).to(y.dtype)
        painted = model.features(model.decode(target), model.layers)
        layer = content_layer_of(model, None)
        energy_B = features[layer].float().square().flatten(1).sum(1).clamp_min(1e-6)
        content_B = content_loss(painted[layer], features[layer]) / energy_B
        ours = {name: gram(standardised(painted[name], layers[name])) for name in layers}
        style_B = style_loss(ours, grams, weights)
        # Pairs that are far apart are a thousand times worse than others, and would drown them.
        total = (defaults["alpha"].default * content_B + defaults["beta"].default * style_B).log1p().mean()
        return {"loss": total, "content_loss": content_B.detach().mean(), "style_loss": style_B.detach().median()}

    def validate(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """The loss with the right half, upside down, as the style of the left one; PSNR of a picture left as it is."""
        half = x_BCHW.shape[3] // 2
        pair = torch.cat([x_BCHW[..., :half], x_BCHW[..., -half:].flip(2)])
        figures = {name: float(value) for name, value in self.loss(model, pair, generator).items()}
        return {"psnr_db": -float(psnr_loss(model(x_BCHW).clamp(0, 1), x_BCHW)), **figures}

    def sample(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """In the style of its own right half, upside down."""
        assert isinstance(model, Perceptual)
        y, style = model.encode(x_BCHW), model.encode(x_BCHW[..., x_BCHW.shape[3] // 2 :].flip(2))
        return x_BCHW, model.decode(adain(y, moments(y), moments(style)))

    def check(self, model: Autoencoder, params: Any) -> None:
        """Raises: CheckpointError for a layer that is not there, or a method that the network cannot do."""
        assert isinstance(params, StylizeParams)
        if not isinstance(model, Perceptual):
            raise CheckpointError(f"stylize works with networks of the architecture perceptual, not {type(model).__name__}")
        for name in [*(params.style_layers or {}), *([params.content_layer] if params.content_layer else [])]:
            if name not in model.layers:
                raise CheckpointError(f"layer {name!r} does not exist; the network has {', '.join(model.layers)}")
        if params.method == "adain" and model.decoder is None:
            raise CheckpointError("method adain needs a network with a trained decoder, and this one has none; say gatys")

    def prepare(self, model: Autoencoder, params: Any, references: list[np.ndarray], device: str) -> Autoencoder:
        assert isinstance(model, Perceptual)
        assert isinstance(params, StylizeParams)
        layers = params.style_layers or dict.fromkeys(model.first_layers, 1.0)
        shares = params.style_weights or [1.0] * len(references)
        last = model.layers[-1]
        with torch.no_grad():
            found = [
                model.features(to_batch([resized(rgb, STYLE_SIDE)], model.stride, device), {last, *layers})
                for rgb in references
            ]
            means, stds = ({name: mixed([moments(f[name])[i] for f in found], shares) for name in found[0]} for i in (0, 1))
            own = {name: (means[name], stds[name]) for name in found[0]}
            grams = {name: mixed([gram(standardised(f[name], own[name])) for f in found], shares) for name in layers}
        weights = {name: w / float(energy_of(grams[name])) for name, w in layers.items() if w}
        target = Target(own[last], own, grams, weights)
        return Stylist(model, target, content_layer_of(model, params.content_layer)).eval()

    def predict(self, model: Autoencoder, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Restyled images, with the size they were reduced to; a row of gatys has its losses."""
        assert isinstance(model, Stylist)
        assert isinstance(params, StylizeParams)
        side = params.size or (GATYS_SIDE if params.method == "gatys" else None)
        contents = [resized(sample.rgb, side) if side else sample.rgb for sample in samples]
        outputs: dict[int, Output] = {}
        for chosen in batches(contents, model.stride, GATYS_PIXELS[precision.device]):
            images = [contents[n] for n in chosen]
            x = to_batch(images, model.stride, precision.device)
            if params.method == "adain":
                columns: list[dict[str, Any]] = [{} for _ in images]
                with torch.inference_mode(), precision.autocast():
                    painted = paint(model, x, params.strength)
            else:
                painted, columns = optimised(model, x, [samples[n].seed for n in chosen], params)
            for n, result, column in zip(chosen, to_uint8(painted), columns, strict=True):
                h, w = contents[n].shape[:2]
                image = result[:h, :w]
                if params.preserve_color:
                    image = recolour(luma_8(image).astype(np.uint8), chroma_of(contents[n]))
                outputs[n] = Output(image, columns=column, coloured=not params.preserve_color)
        return [outputs[n] for n in range(len(samples))]


def energy_of(gram_Bdd: Tensor) -> Tensor:
    """(B,) mean square of Gram matrices; of a flat style, which has none, a tenth of what channels that differ have."""
    return gram_Bdd.square().mean((1, 2)).clamp_min(0.1 / gram_Bdd.shape[1])


def mixed(tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted mean of what several styles have."""
    total = torch.stack([share * each for share, each in zip(shares, tensors, strict=True)]).sum(0)
    return total / sum(shares)


def content_layer_of(model: Perceptual, asked: str | None) -> str:
    return asked or ("relu4_1" if "relu4_1" in model.layers else model.layers[-1])


def paint(stylist: Stylist, x_BCHW: Tensor, strength: float) -> Tensor:
    """One pass over images (B,3,H,W) in [0,1], large ones in tiles; every tile has the statistics of the whole image."""
    own = stylist.statistics(x_BCHW)
    return tiled(
        lambda piece: stylist.decode(stylist.restyled(stylist.net.encode(piece), own, strength)), x_BCHW, TILE, stylist.halo
    )


def optimised(
    stylist: Stylist, x_BCHW: Tensor, seeds: list[int], params: StylizeParams
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Images whose pixels alone are changed so that α·content + β·style falls (Gatys et al. 2016), and their losses.

    Adam's steps are of each pixel by itself, so images are optimised together and none depends on another. L-BFGS chooses
    one length of step for all that it is given, so it is given one image at a time.
    """
    if params.optimizer == "lbfgs" and len(x_BCHW) > 1:
        each = [optimised(stylist, x[None], [seed], params) for x, seed in zip(x_BCHW, seeds, strict=True)]
        return torch.cat([image for image, _ in each]), [columns[0] for _, columns in each]
    with torch.no_grad():
        content = stylist.net.features(x_BCHW, {stylist.content_layer})[stylist.content_layer].float()
        target = x_BCHW.clone(memory_format=torch.contiguous_format)  # L-BFGS takes no other
        if params.start == "noise":
            for image, seed in zip(target, seeds, strict=True):
                image.copy_(torch.rand(image.shape, generator=torch.Generator().manual_seed(seed % 2**63)))
    curve: list[Tensor] = []

    def closure() -> Tensor:
        target.grad = None
        content_B, style_B = stylist.losses(target, content)
        total_B = params.alpha * content_B + params.beta * style_B
        (target.grad,) = torch.autograd.grad(total_B.sum(), target)
        curve.append(total_B.detach())
        return total_B.detach().sum()

    with torch.enable_grad():
        target.requires_grad_()
        if params.optimizer == "lbfgs":
            torch.optim.LBFGS(
                [target], max_iter=params.steps, max_eval=params.steps, tolerance_change=0, line_search_fn="strong_wolfe"
            ).step(closure)
        else:
            adam = torch.optim.Adam([target], lr=ADAM_RATE)
            # Full steps to the end would leave their noise in the picture.
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, params.steps)
            for _ in range(params.steps):
                adam.step(closure)
                schedule.step()
                with torch.no_grad():
                    target.clamp_(0, 1)
    with torch.no_grad():
        image = target.detach().clamp_(0, 1)
        content_B, style_B = stylist.losses(image, content)
    curves = torch.stack([*curve, params.alpha * content_B + params.beta * style_B], 1).tolist()
    return image, [
        {"content_loss": c, "style_loss": s, "losses": line}
        for c, s, line in zip(content_B.tolist(), style_B.tolist(), curves, strict=True)
    ]


def batches(images: list[np.ndarray], stride: int, most_pixels: int) -> list[list[int]]:
    """Indices of images of one padded size, at most so many pixels together."""
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for n, image in enumerate(images):
        shape = pad_to(image, stride).shape
        group = groups.setdefault(shape, [[]])
        if group[-1] and (len(group[-1]) + 1) * shape[0] * shape[1] > most_pixels:
            group.append([])
        group[-1].append(n)
    return [chosen for group in groups.values() for chosen in group]


def resized(rgb: np.ndarray, side: int) -> np.ndarray:
    """(H,W,3) uint8 with a long side of at most `side`."""
    h, w = rgb.shape[:2]
    if max(h, w) <= side:
        return rgb
    scale = side / max(h, w)
    image = Image.fromarray(rgb).resize((max(1, round(w * scale)), max(1, round(h * scale))), Image.Resampling.LANCZOS)
    return np.asarray(image)


def reduced(x_BCHW: Tensor, stride: int) -> Tensor:
    """Images of at most SEEN_PIXELS, sides multiples of `stride`."""
    h, w = x_BCHW.shape[2:]
    if h * w <= SEEN_PIXELS:
        return x_BCHW
    scale = (SEEN_PIXELS / (h * w)) ** 0.5
    size = [max(1, int(n * scale) // stride) * stride for n in (h, w)]
    return torch.nn.functional.interpolate(x_BCHW, size, mode="bilinear", antialias=True)


def chroma_of(rgb: np.ndarray) -> np.ndarray:
    """(H,W,3) uint8 to chroma (2,H,W) float32 in [-0.5,0.5]."""
    chroma: np.ndarray = np.tensordot(np.asarray(YCBCR[1:], np.float32), rgb.astype(np.float32) / 255, ([1], [2]))
    return chroma
