"""Stylize: render the content of an image in the style of one or several style images."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.autoencoder import Network
from imagemill.models.batches import padded_size, to_float_batch, to_uint8_images
from imagemill.models.colour import luma_uint8, replace_chroma, rgb_to_chroma
from imagemill.models.errors import CheckpointError
from imagemill.models.losses import psnr_loss
from imagemill.models.objectives.objective import Objective, TaskObjective
from imagemill.models.objectives.perceive import jitter_colours
from imagemill.models.precision import Precision
from imagemill.models.resizing import limit_side
from imagemill.models.style_transfer import StyleTransfer, build_style_target, optimise_images, restyle, transfer_style
from imagemill.models.tasks.stylize import GATYS_SIDE, METHOD_PARAMS, StylizeParams
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.type_checks import require_type

STYLE_SIDE = 512
"""Style images are reduced to this long side, which determines the size of the strokes."""
GATYS_PIXELS = {"cpu": 600_000, "cuda": 16_000_000}
"""Pixels that are optimised together; each takes about 1 kB for the features of the bundled network, 5 kB for VGG-19."""
IDENTITY_SHARE = 0.2
"""Share of training crops that pass without a style."""
CONTENT_WEIGHT, STYLE_WEIGHT = 1.0, 10.0
"""α and β of the training. At equal weights, one pass keeps most of the photo's colours and texture."""
IDENTITY_WEIGHT = 100.0
"""Weight of the squared error of crops that pass without a style."""


class Stylize(Objective, TaskObjective):
    """Train the decoder of a perceptual network, and transfer styles with it."""

    trainable_types = (Perceptual,)
    network_types = (Perceptual,)

    def freeze(self, model: Network) -> None:
        """Freeze the encoder, because a measure that is trained along would learn to be satisfied."""
        model = require_type(model, Perceptual)
        model.encoder.requires_grad_(False)

    def loss(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the loss of one pass over each crop in the style of another crop; mean of the logarithm.

        The crops lend each other their style in other colours, so that few paintings teach many palettes. A share of the
        crops passes without a style and must come back unchanged, as with strength 0.
        """
        model = require_type(model, Perceptual)
        identical = int(len(x_BCHW) * IDENTITY_SHARE)
        style = torch.cat([x_BCHW[:identical], jitter_colours(x_BCHW.roll(1, 0)[identical:], generator)])
        transfer = default_transfer(model, style)
        strength_B111 = (torch.arange(len(x_BCHW)) >= identical).float().view(-1, 1, 1, 1)
        seeds = torch.randint(2**31, (len(x_BCHW),), generator=generator).tolist()
        with torch.no_grad():
            content = model.features(x_BCHW, {transfer.content_layer})[transfer.content_layer]
            y = model.encode(transfer.prepare(x_BCHW, seeds, strength_B111))
            restyled = restyle(y, transfer.build_transforms(y), strength_B111)
        x_hat = transfer.decode(restyled)
        content_B, style_B = transfer.losses(x_hat, content)
        error_B = (x_hat[:identical] - x_BCHW[:identical]).square().mean((1, 2, 3))
        # The losses of very different pairs are a thousand times larger and would dominate a plain mean.
        total_B = CONTENT_WEIGHT * content_B + STYLE_WEIGHT * style_B
        total_B = total_B + torch.cat([IDENTITY_WEIGHT * error_B, torch.zeros(len(x_BCHW) - identical)])
        return {
            "loss": total_B.log1p().mean(),
            "content_loss": content_B.detach().mean(),
            "style_loss": style_B.detach().median(),
        }

    def validate(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Measure the loss of each half in the style of the other half turned over, and the PSNR of a reconstruction."""
        half = max(1, x_BCHW.shape[3] // 2 // model.stride) * model.stride
        pair = torch.cat([x_BCHW[..., :half], x_BCHW[..., -half:].flip(2)])
        figures = {name: float(value) for name, value in self.loss(model, pair, generator).items()}
        return {"psnr_db": -float(psnr_loss(model(x_BCHW).clamp(0, 1), x_BCHW)), **figures}

    def preview(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the images, and the images in the style of their right half turned over."""
        model = require_type(model, Perceptual)
        transfer = default_transfer(model, x_BCHW[..., x_BCHW.shape[3] // 2 :].flip(2))
        return x_BCHW, transfer(x_BCHW)

    def check(self, model: Network, params: Any) -> None:
        """Check that the network has the layers, and the decoder, that the parameters need.

        Raises:
            CheckpointError: when it has not.
        """
        super().check(model, params)
        model = require_type(model, Perceptual)
        params = require_type(params, StylizeParams)
        for name in [*(params.style_layers or {}), *([params.content_layer] if params.content_layer else [])]:
            if name not in model.layers:
                raise CheckpointError(f"layer {name!r}: does not exist in the network. Valid: {', '.join(model.layers)}")
        if params.method == "adain" and model.decoder is None:
            raise CheckpointError("method=adain: needs a network with a trained decoder. Choose method=gatys")

    def prepare(self, model: Network, params: Any, style_images: list[np.ndarray], device: str) -> Network:
        """Measure the style images and return the network with their statistics."""
        model = require_type(model, Perceptual)
        params = require_type(params, StylizeParams)
        styles = [to_float_batch([limit_side(rgb, STYLE_SIDE)], model.stride, device) for rgb in style_images]
        weights = params.style_weights or [1.0] * len(styles)
        target = build_style_target(model, styles, params.style_layers or default_style_layers(model), weights)
        return StyleTransfer(model, target, choose_content_layer(model, params.content_layer)).eval()

    def predict(self, model: Network, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Restyle images, which are first reduced to `params.size`; rows of `gatys` contain the losses."""
        model = require_type(model, StyleTransfer)
        params = require_type(params, StylizeParams)
        side = params.size or (GATYS_SIDE if params.method == "gatys" else None)
        contents = [limit_side(sample.rgb, side) if side else sample.rgb for sample in samples]
        outputs: dict[int, Output] = {}
        for indices in split_batches(contents, model.stride, GATYS_PIXELS[precision.device]):
            images = [contents[n] for n in indices]
            x = to_float_batch(images, model.stride, precision.device)
            if params.method == "adain":
                columns: list[dict[str, Any]] = [{} for _ in images]
                with torch.inference_mode():
                    restyled = precision.run(transfer_style, model, x, [samples[n].seed for n in indices], params.strength)
            else:
                options = params.model_dump(include=set(METHOD_PARAMS["gatys"]))
                options["report_progress"] = samples[indices[0]].report_progress
                restyled, columns = optimise_images(model, x, [samples[n].seed for n in indices], **options)
            for n, result, column in zip(indices, to_uint8_images(restyled), columns, strict=True):
                h, w = contents[n].shape[:2]
                image = result[:h, :w]
                if params.preserve_color:
                    image = replace_chroma(luma_uint8(image).astype(np.uint8), rgb_to_chroma(contents[n]))
                outputs[n] = Output(image, columns=column, has_colours=not params.preserve_color)
        return [outputs[n] for n in range(len(samples))]


def default_transfer(model: Perceptual, style_B3HW: Tensor) -> StyleTransfer:
    """Return the transfer of one style for each image of a batch, measured in the default layers."""
    target = build_style_target(model, [style_B3HW], default_style_layers(model), [1.0])
    return StyleTransfer(model, target, choose_content_layer(model, None))


def default_style_layers(model: Perceptual) -> dict[str, float]:
    """Return the layers of the style loss when the parameters name none, with their weights."""
    return dict.fromkeys(model.first_layers, 1.0)


def choose_content_layer(model: Perceptual, name: str | None) -> str:
    """Return the layer of the content loss: the one named, else relu4_1, else the last layer."""
    return name or ("relu4_1" if "relu4_1" in model.layers else model.layers[-1])


def split_batches(images: list[np.ndarray], stride: int, max_pixels: int) -> list[list[int]]:
    """Return the indices of images in batches of one padded size and at most `max_pixels` pixels, or one image."""
    groups: dict[tuple[int, int], list[list[int]]] = {}
    for n, image in enumerate(images):
        shape = padded_size(image, stride)
        group = groups.setdefault(shape, [[]])
        if group[-1] and (len(group[-1]) + 1) * shape[0] * shape[1] > max_pixels:
            group.append([])
        group[-1].append(n)
    return [indices for group in groups.values() for indices in group]
