"""Colorize: predict chroma from luma. The luma of the output is exactly the luma of the source."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imagemill.models.architectures.chroma import ChromaNetwork
from imagemill.models.autoencoder import Network
from imagemill.models.batches import pad_to_stride, round_to_8_bits
from imagemill.models.colour import luma_chroma_to_rgb, replace_chroma, rgb_to_chroma_planes, rgb_to_luma
from imagemill.models.guided_filter import enlarge_guided
from imagemill.models.losses import psnr_loss
from imagemill.models.objectives.objective import Objective, TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.resizing import limit_pixels, resize
from imagemill.models.tasks.colorize import ColorizeParams
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.type_checks import require_type

SCALES = (0.7, 1.0)
"""Crops are resized to a random share of their size in this range, because objects have any size."""
MAX_NOISE = 0.02
"""Standard deviation up to which the luma of a crop gets noise, like the grain of a photo."""
CLASS_WEIGHT = 1.0
"""Decibels that one nat of cross-entropy counts as much as."""
ERROR_FLOOR = 1e-4
"""Mean squared error (40 dB) below which the loss hardly falls. Images without colour would dominate it otherwise."""


class Colorize(Objective, TaskObjective):
    """Train and apply networks that predict chroma from luma."""

    trainable_types = (ChromaNetwork,)
    network_types = (ChromaNetwork,)

    def freeze(self, model: Network) -> None:
        """Freeze the weights that the network keeps from an earlier training."""
        require_type(model, ChromaNetwork).freeze()

    def loss(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the PSNR loss in RGB of the true luma with the predicted chroma."""
        model = require_type(model, ChromaNetwork)
        x_BCHW = resize_randomly(x_BCHW, model.output_stride, generator)
        luma, chroma = rgb_to_luma(x_BCHW), rgb_to_chroma_planes(x_BCHW)
        # Gray photographs have other exposures than the training images, so the network gets a random gain and gamma.
        gain = 0.8 + 0.4 * torch.rand(len(luma), 1, 1, 1, generator=generator)
        gamma = 0.8 + 0.4 * torch.rand(len(luma), 1, 1, 1, generator=generator)
        noise = (
            MAX_NOISE * torch.rand(len(luma), 1, 1, 1, generator=generator) * torch.randn(luma.shape, generator=generator)
        )
        predicted, further_loss = model.learn(((luma * gain).clamp(1e-4, 1) ** gamma + noise).clamp(0, 1), chroma)
        x_hat = luma_chroma_to_rgb(luma, predicted)
        squared = (x_hat - x_BCHW).float().square().flatten(1).mean(1)
        loss = 10 * (squared + ERROR_FLOOR).log10().mean() + CLASS_WEIGHT * further_loss
        return {"loss": loss, "psnr_db": -psnr_loss(x_hat.detach(), x_BCHW), "further_loss": further_loss.detach()}

    def validate(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Measure the PSNR, and its gain over the gray image."""
        model = require_type(model, ChromaNetwork)
        luma = rgb_to_luma(x_BCHW)
        x_hat, gray = luma_chroma_to_rgb(luma, model(luma)), luma.expand_as(x_BCHW)
        gray_psnr, psnr = (-float(psnr_loss(round_to_8_bits(x), x_BCHW)) for x in (gray, x_hat))
        return {"psnr_db": psnr, "gain_over_gray_db": psnr - gray_psnr}

    def preview(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the luma and the colorized images."""
        model = require_type(model, ChromaNetwork)
        luma = rgb_to_luma(x_BCHW)
        return luma, luma_chroma_to_rgb(luma, model(luma))

    def predict(self, model: Network, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Predict the chroma of each image; the output has exactly the luma of Pillow's convert("L")."""
        model = require_type(model, ChromaNetwork)
        params = require_type(params, ColorizeParams)
        lumas = [np.asarray(Image.fromarray(sample.rgb).convert("L")) for sample in samples]
        x = torch.from_numpy(np.stack([pad_to_stride(luma[..., None], model.stride)[..., 0] for luma in lumas]))[:, None]
        x = x.to(precision.device).float() / 255
        with torch.inference_mode():
            reduced = limit_pixels(x, model.prediction_pixels, model.stride)
            chroma = enlarge_guided(precision.run(model.colour, reduced), reduced, x)
            chroma_B2HW = chroma.mul_(params.saturation).cpu().numpy()
        outputs = []
        for luma, chroma in zip(lumas, chroma_B2HW, strict=True):
            image = replace_chroma(luma, chroma[:, : luma.shape[0], : luma.shape[1]])
            outputs.append(Output(image, columns={"colourfulness": colourfulness(image)}, has_colours=True))
        return outputs


def resize_randomly(x_BCHW: Tensor, stride: int, generator: torch.Generator) -> Tensor:
    """Resize crops (B,C,crop,crop) to a random side that is a multiple of `stride`, the same for all of them."""
    low, high = (max(1, round(scale * x_BCHW.shape[3] / stride)) for scale in SCALES)
    side = stride * int(torch.randint(low, high + 1, (), generator=generator))
    return resize(x_BCHW, [side, side])


def colourfulness(rgb: np.ndarray) -> float:
    """Return the colourfulness of an image (H,W,3) uint8; 0 is gray (Hasler and Süsstrunk 2003)."""
    r, g, b = (rgb[..., c].astype(np.float32) for c in range(3))
    red_green, yellow_blue = r - g, (r + g) / 2 - b
    return float(np.hypot(red_green.std(), yellow_blue.std()) + 0.3 * np.hypot(red_green.mean(), yellow_blue.mean()))
