"""Inpaint: fill missing pixels (holes, scratches, lost pixels, one colour plane). Known pixels stay bit-identical."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagemill.models.architectures.masked import MaskedUNet, push_pull
from imagemill.models.autoencoder import Network
from imagemill.models.batches import round_to_8_bits, to_float_batch, to_uint8_images
from imagemill.models.damage import drop_blocks, drop_pixels, drop_strokes
from imagemill.models.losses import psnr_loss
from imagemill.models.objectives.image_networks import process_images
from imagemill.models.objectives.objective import Objective, TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.routes.image_network import ImageNetwork
from imagemill.models.tasks.image_params import ImageParams
from imagemill.models.tasks.inpaint import PLANES, InpaintParams
from imagemill.models.tasks.task import Output, Sample, SampleError
from imagemill.models.tiling import apply_tiled
from imagemill.models.type_checks import require_type

TILE = 768
PLANE_SHARE, BLOCK_SHARE, STROKE_SHARE = 0.1, 0.2, 0.1
"""Shares of training crops that lose a plane, blocks or scratches. The rest lose pixels, which is learned most slowly."""
VALIDATION_SHARE = 0.5


class Inpaint(Objective, TaskObjective):
    """Train and apply networks that fill missing pixels."""

    trainable_types = (MaskedUNet,)
    network_types = (MaskedUNet, ImageNetwork)

    def loss(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the PSNR loss of the images, whose known pixels are copied from the source."""
        model = require_type(model, MaskedUNet)
        batch, _, h, w = x_BCHW.shape
        known = torch.stack([draw_damage(h, w, generator) for _ in range(batch)])
        restored = inpaint_unknown(model, x_BCHW, known.to(x_BCHW.device, x_BCHW.dtype))
        loss = psnr_loss(restored, x_BCHW)
        return {"loss": loss, "psnr_db": -loss.detach()}

    def validate(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Measure the PSNR with half of the pixels lost, and with 15 % of the area lost in squares of 16 pixels."""
        model = require_type(model, MaskedUNet)
        h, w = x_BCHW.shape[2:]
        figures = {}
        for name, known in (
            ("pixels", drop_pixels(h, w, VALIDATION_SHARE, generator)),
            ("blocks", drop_blocks(h, w, 0.15, 16, generator)),
        ):
            restored = inpaint_unknown(model, x_BCHW, known.to(x_BCHW.device, x_BCHW.dtype).expand_as(x_BCHW))
            figures[f"psnr_{name}_db"] = -float(psnr_loss(round_to_8_bits(restored), x_BCHW))
        return {"psnr_db": sum(figures.values()) / len(figures), **figures}

    def preview(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return images that lost 15 % of their area in squares of 16 pixels, and the filled images."""
        model = require_type(model, MaskedUNet)
        h, w = x_BCHW.shape[2:]
        known = drop_blocks(h, w, 0.15, 16, generator).to(x_BCHW.device, x_BCHW.dtype).expand_as(x_BCHW)
        return x_BCHW * known, inpaint_unknown(model, x_BCHW, known)

    def predict(self, model: Network, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Fill each image; known pixels are copied from the source, so that they stay bit-identical."""
        params = require_type(params, InpaintParams)
        masks = [known_mask(sample, params) for sample in samples]
        filled: Iterable[np.ndarray]
        if isinstance(model, ImageNetwork):
            filled = fill_whole(model, samples, masks, precision)
        else:
            filled = fill_in_tiles(require_type(model, MaskedUNet), samples, masks, precision)
        outputs = []
        for restored, known, sample in zip(filled, masks, samples, strict=True):
            h, w = known.shape[:2]
            image = np.where(known, sample.rgb, restored[:h, :w])
            columns = {"missing_share": float(1 - known.mean())}
            # A predicted plane differs from the two known ones, so converting a gray image back to gray would change them.
            coloured = params.missing in PLANES
            outputs.append(Output(image, columns=columns, drops_alpha=params.missing == "alpha", has_colours=coloured))
        return outputs


def fill_in_tiles(
    model: MaskedUNet, samples: list[Sample], masks: list[np.ndarray], precision: Precision
) -> Iterable[np.ndarray]:
    """Restore images of one padded size to (H,W,3) uint8, with padding. Known pixels are close to those of the source.

    Args:
        model: the network.
        samples: the images.
        masks: (H,W,3) bool of each image, True where a value is known.
        precision: device and dtype.
    """
    pairs = []
    for sample, known in zip(samples, masks, strict=True):
        # Contiguous, because the channels-last layout rounds differently and would change existing outputs.
        x, k = (to_float_batch([a], model.stride, "cpu").contiguous() for a in (sample.rgb, known.astype(np.uint8) * 255))
        pairs.append(torch.cat([push_pull(x, k), k], 1))
    x_and_known = torch.cat(pairs).to(precision.device)
    with torch.inference_mode():
        x_hat = apply_tiled(lambda tile: precision.run(model, *tile.split(3, 1)), x_and_known, TILE, model.halo)
    return to_uint8_images(x_hat)


def fill_whole(
    model: ImageNetwork, samples: list[Sample], masks: list[np.ndarray], precision: Precision
) -> list[np.ndarray]:
    """Fill the missing pixels of images of one size with an imported network, which takes whole images and masks.

    An image without a missing pixel does not pass the network.

    Args:
        model: the network.
        samples: the images.
        masks: (H,W,3) bool of each image, True where a pixel is known.
        precision: device, dtype and memory.

    Raises:
        SampleError: when an image is too large for the memory of the worker, or the network gives no valid image.
    """
    filled = [sample.rgb for sample in samples]
    damaged = [number for number, known in enumerate(masks) if not known.all()]
    inputs = [np.dstack([filled[number], np.where(masks[number][..., :1], 0, 255).astype(np.uint8)]) for number in damaged]
    if inputs:
        for number, image in zip(damaged, process_images(model, inputs, ImageParams(), precision), strict=True):
            filled[number] = image
    return filled


def inpaint_unknown(model: MaskedUNet, x_BCHW: Tensor, known_BCHW: Tensor) -> Tensor:
    """Return images (B,C,H,W) with their unknown values filled; `known` is 1 where a value is known, else 0."""
    restored = model(push_pull(x_BCHW, known_BCHW), known_BCHW)
    return known_BCHW * x_BCHW + (1 - known_BCHW) * restored


def draw_damage(h: int, w: int, generator: torch.Generator) -> Tensor:
    """Draw one kind of damage (a plane, pixels, blocks or scratches); return the known values (3,h,w) bool."""
    kind, amount, size = torch.rand(3, generator=generator).tolist()
    if kind < PLANE_SHARE:
        known = torch.ones(3, h, w, dtype=torch.bool)
        known[int(amount * 3)] = False
        return known
    if kind < PLANE_SHARE + BLOCK_SHARE:
        plane = drop_blocks(h, w, 0.05 + 0.35 * amount, round(2 * 16**size), generator)
    elif kind < PLANE_SHARE + BLOCK_SHARE + STROKE_SHARE:
        plane = drop_strokes(h, w, 2 + int(10 * amount), generator)
    else:
        plane = drop_pixels(h, w, 0.1 + 0.8 * amount, generator)
    return plane.expand(3, h, w)


def known_mask(sample: Sample, params: InpaintParams) -> np.ndarray:
    """Return the known values of a sample, (H,W,3) bool.

    Raises:
        SampleError: when the image has no alpha or mask that `missing` needs, or no known value.
    """
    h, w = sample.rgb.shape[:2]
    known: np.ndarray
    if params.missing in PLANES:
        known = np.ones((h, w, 3), bool)
        known[..., PLANES.index(params.missing)] = False
        return known
    if params.missing == "alpha":
        if sample.alpha is None:
            raise SampleError("NoAlpha", "missing=alpha, but the image has no transparency")
        known = sample.alpha > 0
    elif params.missing == "file":
        if sample.mask is None:
            raise SampleError("NoMask", "missing=file, but there is no mask NAME.mask.png next to the image")
        if sample.mask.shape != (h, w):
            size = f"{sample.mask.shape[1]}×{sample.mask.shape[0]}"
            message = f"the mask has {size} pixels, but the upright image has {w}×{h}. Save it in the size that viewers show"
            raise SampleError("MaskSize", message)
        known = sample.mask == 0
    elif params.missing == "key":
        key = np.frombuffer(bytes.fromhex(params.key[1:]), np.uint8).astype(np.int16)
        known = (np.abs(sample.rgb.astype(np.int16) - key) > params.tolerance).any(2)
    else:
        generator = torch.Generator().manual_seed(sample.seed % 2**63)
        known = (
            drop_pixels(h, w, params.share, generator)
            if params.block == 1
            else drop_blocks(h, w, params.share, params.block, generator)
        ).numpy()
    if not known.any():
        raise SampleError("NothingKnown", "all pixels are missing")
    return np.broadcast_to(known[..., None], (h, w, 3))
