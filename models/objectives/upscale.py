"""Upscale: enlarge images by the scale of the model, which is trained on images that the bicubic filter reduced."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from imagemill.models.architectures.edsr import EDSR
from imagemill.models.autoencoder import Network
from imagemill.models.batches import bytes_to_float, float_to_bytes, round_to_8_bits, to_uint8_batch, to_uint8_images
from imagemill.models.losses import image_loss, psnr_loss
from imagemill.models.objectives.image_networks import process_images
from imagemill.models.objectives.objective import Objective, TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.resizing import resize
from imagemill.models.routes.image_network import ImageNetwork
from imagemill.models.self_ensemble import run_network
from imagemill.models.tasks.image_params import ImageParams
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.tiling import apply_tiled, tile_side
from imagemill.models.type_checks import require_type


class Upscale(Objective, TaskObjective):
    """Train and apply networks that enlarge images."""

    trainable_types = (EDSR,)
    module_methods = ("forward",)
    network_types = (EDSR, ImageNetwork)

    def loss(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the PSNR loss of crops that are reduced and enlarged again."""
        return image_loss(model(downscale(x_BCHW, model.scale)), x_BCHW)

    def validate(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Measure the PSNR after rounding to 8 bits, and its gain over bicubic interpolation."""
        small = downscale(x_BCHW, model.scale)
        enlarged = model(small), resize(small, list(x_BCHW.shape[2:]), "bicubic")
        psnr, bicubic_psnr = (-float(psnr_loss(round_to_8_bits(x_hat), x_BCHW)) for x_hat in enlarged)
        return {"psnr_db": psnr, "gain_over_bicubic_db": psnr - bicubic_psnr}

    def preview(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the reduced images and the enlarged ones."""
        small = downscale(x_BCHW, model.scale)
        return small, model(small)

    def predict(self, model: Network, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Enlarge each image (H,W,3) to (scale·H,scale·W,3)."""
        scale, images = model.scale, [sample.rgb for sample in samples]
        params = require_type(params, ImageParams)
        if isinstance(model, ImageNetwork):
            results = process_images(model, images, params, precision)
            return [Output(image, columns={"scale": scale}) for image in results]
        # Large images stay uint8; each tile is converted to float by itself.
        x = to_uint8_batch(images, model.stride, precision.device)
        # The output is larger than the input, so its size decides about the tiles.
        tile = tile_side(*(scale * n for n in x.shape[2:]))

        def enlarge(part: Tensor) -> Tensor:
            return float_to_bytes(run_network(model, bytes_to_float(part), params, precision))

        with torch.inference_mode():
            x_hat = apply_tiled(enlarge, x, tile, model.halo, Fraction(scale), model.stride)
        return [
            Output(image=y[: scale * i.shape[0], : scale * i.shape[1]], columns={"scale": scale})
            for y, i in zip(to_uint8_images(x_hat), images, strict=True)
        ]


def downscale(x_BCHW: Tensor, scale: int) -> Tensor:
    """Divide height and width of images (B,C,H,W) in [0,1] by `scale` with the bicubic filter, rounded to 8 bits."""
    h, w = x_BCHW.shape[2:]
    return round_to_8_bits(resize(x_BCHW, [h // scale, w // scale], "bicubic"))
