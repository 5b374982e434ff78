"""Stylize: the content of an image, painted as one or several style images are."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.batches import padded_size, to_float_batch, to_uint8_images
from imagemill.models.card import CheckpointError
from imagemill.models.colour import luma_uint8, replace_chroma, rgb_to_chroma
from imagemill.models.losses import psnr_loss
from imagemill.models.objectives.objective import TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.resizing import limit_side
from imagemill.models.style_statistics import moments
from imagemill.models.style_transfer import StyleTransfer, build_style_target, optimise_images, transfer_style
from imagemill.models.tasks.stylize import GATYS_SIDE, METHOD_PARAMS, StylizeParams
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.type_checks import require_type

STYLE_SIDE = 512
"""Long side to which a style is reduced: it sets how large its strokes are."""

GATYS_PIXELS = {"cpu": 600_000, "cuda": 16_000_000}
"""Optimised together; each takes about a kilobyte for the features of the small network, five for VGG-19's."""
IDENTITY_SHARE = 0.25
"""Of training crops that are their own style."""


DEFAULT = {key: StylizeParams.model_fields[key].default for key in METHOD_PARAMS["gatys"]}


class Stylize(TaskObjective):
    trainable_type = Perceptual

    def freeze(self, model: Autoencoder) -> None:
        """The encoder: what measures must not learn to be pleased."""
        model = require_type(model, Perceptual)
        model.encoder.requires_grad_(False)

    def loss(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """What `gatys` minimises, of what one pass makes of each crop in the style of another; of its logarithm the mean."""
        model = require_type(model, Perceptual)
        own = int(len(x_BCHW) * IDENTITY_SHARE)
        style = torch.cat([x_BCHW[:own], x_BCHW.roll(1, 0)[own:]])
        stylist = StyleTransfer(
            model, build_style_target(model, [style], default_style_layers(model), [1.0]), choose_content_layer(model, None)
        )
        with torch.no_grad():
            features = model.features(x_BCHW, {stylist.content_layer, *model.first_layers})
            y = [features[name] for name in model.first_layers]
            goal = stylist.restyled(y, [moments(layer) for layer in y], 1.0)
        content_B, style_B = stylist.losses(stylist.decode(goal), features[stylist.content_layer])
        # Pairs that are far apart are a thousand times worse than others, and would drown them.
        total = (DEFAULT["alpha"] * content_B + DEFAULT["beta"] * style_B).log1p().mean()
        return {"loss": total, "content_loss": content_B.detach().mean(), "style_loss": style_B.detach().median()}

    def validate(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """The loss of both halves, the right one upside down, each in the other's style; PSNR of a picture left as it is."""
        half = max(1, x_BCHW.shape[3] // 2 // model.stride) * model.stride
        pair = torch.cat([x_BCHW[..., :half], x_BCHW[..., -half:].flip(2)])
        figures = {name: float(value) for name, value in self.loss(model, pair, generator).items()}
        return {"psnr_db": -float(psnr_loss(model(x_BCHW).clamp(0, 1), x_BCHW)), **figures}

    def sample(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """In the style of its own right half, upside down."""
        model = require_type(model, Perceptual)
        style = x_BCHW[..., x_BCHW.shape[3] // 2 :].flip(2)
        stylist = StyleTransfer(
            model, build_style_target(model, [style], default_style_layers(model), [1.0]), choose_content_layer(model, None)
        )
        return x_BCHW, stylist(x_BCHW)

    def check(self, model: Autoencoder, params: Any) -> None:
        """Raises: CheckpointError for a layer that is not there, or a method that the network cannot do."""
        params = require_type(params, StylizeParams)
        if not isinstance(model, Perceptual):
            raise CheckpointError(f"stylize works with networks of the architecture perceptual, not {type(model).__name__}")
        for name in [*(params.style_layers or {}), *([params.content_layer] if params.content_layer else [])]:
            if name not in model.layers:
                raise CheckpointError(f"layer {name!r} does not exist; the network has {', '.join(model.layers)}")
        if params.method == "adain" and model.decoder is None:
            raise CheckpointError("method adain needs a network with a trained decoder, and this one has none; say gatys")

    def prepare(self, model: Autoencoder, params: Any, style_images: list[np.ndarray], device: str) -> Autoencoder:
        model = require_type(model, Perceptual)
        params = require_type(params, StylizeParams)
        styles = [to_float_batch([limit_side(rgb, STYLE_SIDE)], model.stride, device) for rgb in style_images]
        shares = params.style_weights or [1.0] * len(styles)
        target = build_style_target(model, styles, params.style_layers or default_style_layers(model), shares)
        return StyleTransfer(model, target, choose_content_layer(model, params.content_layer)).eval()

    def predict(self, model: Autoencoder, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Restyled images, with the size they were reduced to; a row of gatys has its losses."""
        model = require_type(model, StyleTransfer)
        params = require_type(params, StylizeParams)
        side = params.size or (GATYS_SIDE if params.method == "gatys" else None)
        contents = [limit_side(sample.rgb, side) if side else sample.rgb for sample in samples]
        outputs: dict[int, Output] = {}
        for chosen in split_batches(contents, model.stride, GATYS_PIXELS[precision.device]):
            images = [contents[n] for n in chosen]
            x = to_float_batch(images, model.stride, precision.device)
            if params.method == "adain":
                columns: list[dict[str, Any]] = [{} for _ in images]
                with torch.inference_mode():
                    painted = precision.run(transfer_style, model, x, params.strength)
            else:
                how = params.model_dump(include=set(METHOD_PARAMS["gatys"]))
                painted, columns = optimise_images(model, x, [samples[n].seed for n in chosen], **how)
            for n, result, column in zip(chosen, to_uint8_images(painted), columns, strict=True):
                h, w = contents[n].shape[:2]
                image = result[:h, :w]
                if params.preserve_color:
                    image = replace_chroma(luma_uint8(image).astype(np.uint8), rgb_to_chroma(contents[n]))
                outputs[n] = Output(image, columns=column, has_colours=not params.preserve_color)
        return [outputs[n] for n in range(len(samples))]


def default_style_layers(model: Perceptual) -> dict[str, float]:
    """The layers where style is measured unless others are asked for, and their weights."""
    return dict.fromkeys(model.first_layers, 1.0)


def choose_content_layer(model: Perceptual, asked: str | None) -> str:
    return asked or ("relu4_1" if "relu4_1" in model.layers else model.layers[-1])


def split_batches(images: list[np.ndarray], stride: int, most_pixels: int) -> list[list[int]]:
    """Indices of images of one padded size, at most so many pixels together."""
    groups: dict[tuple[int, int], list[list[int]]] = {}
    for n, image in enumerate(images):
        shape = padded_size(image, stride)
        group = groups.setdefault(shape, [[]])
        if group[-1] and (len(group[-1]) + 1) * shape[0] * shape[1] > most_pixels:
            group.append([])
        group[-1].append(n)
    return [chosen for group in groups.values() for chosen in group]
