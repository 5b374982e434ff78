"""Upscale: an image is enlarged by what its model enlarges by, learned from images that bicubic reduced."""

from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from imagemill.models.architectures.edsr import EDSR
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.batches import bytes_to_float, float_to_bytes, round_to_8_bits, to_uint8_batch, to_uint8_images
from imagemill.models.losses import psnr_loss
from imagemill.models.objectives.objective import TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.resizing import resize
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.tiling import apply_tiled, tile_side
from imagemill.models.type_checks import require_type


class Upscale(TaskObjective):
    trainable_type = EDSR

    def loss(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """PSNR loss of crops that were reduced and are enlarged again."""
        model = require_type(model, EDSR)
        loss = psnr_loss(model(downscale(x_BCHW, model.scale)), x_BCHW)
        return {"loss": loss, "psnr_db": -loss.detach()}

    def validate(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Rounded to 8 bits as an output is, and how much better than bicubic."""
        small = downscale(x_BCHW, model.scale)
        enlarged = model(small), resize(small, list(x_BCHW.shape[2:]), "bicubic")
        reached, floor = (-float(psnr_loss(round_to_8_bits(x_hat), x_BCHW)) for x_hat in enlarged)
        return {"psnr_db": reached, "gain_over_bicubic_db": reached - floor}

    def sample(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        small = downscale(x_BCHW, model.scale)
        return small, model(small)

    def predict(self, model: Autoencoder, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Each image (H,W,3) as (scale·H,scale·W,3)."""
        scale, images = model.scale, [sample.rgb for sample in samples]
        # Large images stay bytes; each tile is made float by itself.
        x = to_uint8_batch(images, model.stride, precision.device)
        # What comes out decides how much room there is.
        tile = tile_side(*(scale * n for n in x.shape[2:]))

        def enlarged(piece: Tensor) -> Tensor:
            return float_to_bytes(precision.run(model, bytes_to_float(piece)))

        with torch.inference_mode():
            x_hat = apply_tiled(enlarged, x, tile, model.halo, Fraction(scale), model.stride)
        return [
            Output(image=y[: scale * i.shape[0], : scale * i.shape[1]], columns={"scale": scale})
            for y, i in zip(to_uint8_images(x_hat), images, strict=True)
        ]


def downscale(x_BCHW: Tensor, scale: int) -> Tensor:
    """Images (B,C,H,W) in [0,1] as 8-bit files of a `scale`-th of their height and width hold them, filtered by bicubic."""
    h, w = x_BCHW.shape[2:]
    return round_to_8_bits(resize(x_BCHW, [h // scale, w // scale], "bicubic"))
