"""Inpaint: what is missing (holes, scratches, lost pixels, one colour plane) is filled; the rest stays as it is."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from imagemill.models.architectures.masked import MaskedUNet, push_pull
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.batches import round_to_8_bits, to_float_batch, to_uint8_images
from imagemill.models.damage import drop_blocks, drop_pixels, drop_strokes
from imagemill.models.losses import psnr_loss
from imagemill.models.objectives.objective import TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.tasks.inpaint import InpaintParams
from imagemill.models.tasks.task import Output, Sample, SampleError
from imagemill.models.tiling import apply_tiled
from imagemill.models.type_checks import require_type

TILE = 768
PLANES = ("red", "green", "blue")
# What a training crop suffers, in this order: a lost plane, blocks, scratches, else lost pixels. Lost pixels are learned
# slowest: what they ask for is detail.
PLANE_SHARE, BLOCK_SHARE, STROKE_SHARE = 0.1, 0.2, 0.1
VALIDATED_LOSS = 0.5


class Inpaint(TaskObjective):
    trainable_type = MaskedUNet

    def loss(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """PSNR loss of the image with its known pixels put back."""
        model = require_type(model, MaskedUNet)
        batch, _, h, w = x_BCHW.shape
        known = torch.stack([draw_damage(h, w, generator) for _ in range(batch)])
        restored = inpaint_unknown(model, x_BCHW, known.to(x_BCHW.device, x_BCHW.dtype))
        loss = psnr_loss(restored, x_BCHW)
        return {"loss": loss, "psnr_db": -loss.detach()}

    def validate(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """With half of the pixels lost, and with a sixth of the area lost in squares of 16."""
        model = require_type(model, MaskedUNet)
        h, w = x_BCHW.shape[2:]
        figures = {}
        for name, known in (
            ("pixels", drop_pixels(h, w, VALIDATED_LOSS, generator)),
            ("blocks", drop_blocks(h, w, 0.15, 16, generator)),
        ):
            restored = inpaint_unknown(model, x_BCHW, known.to(x_BCHW.device, x_BCHW.dtype).expand_as(x_BCHW))
            figures[f"psnr_{name}_db"] = -float(psnr_loss(round_to_8_bits(restored), x_BCHW))
        return {"psnr_db": sum(figures.values()) / len(figures), **figures}

    def sample(self, model: Autoencoder, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """With a sixth of the area lost in squares of 16; what is lost is black."""
        model = require_type(model, MaskedUNet)
        h, w = x_BCHW.shape[2:]
        known = drop_blocks(h, w, 0.15, 16, generator).to(x_BCHW.device, x_BCHW.dtype).expand_as(x_BCHW)
        return x_BCHW * known, inpaint_unknown(model, x_BCHW, known)

    def predict(self, model: Autoencoder, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Fills each image; known pixels are copied from the source, so they stay bit-identical."""
        model = require_type(model, MaskedUNet)
        params = require_type(params, InpaintParams)
        masks = [known_mask(sample, params) for sample in samples]
        pairs = []
        for sample, known in zip(samples, masks, strict=True):
            # Plane by plane: the other layout rounds otherwise, and outputs are to stay what they are.
            x, k = (
                to_float_batch([a], model.stride, "cpu").contiguous() for a in (sample.rgb, known.astype(np.uint8) * 255)
            )
            pairs.append(torch.cat([push_pull(x, k), k], 1))
        x_and_known = torch.cat(pairs).to(precision.device)
        with torch.inference_mode():
            x_hat = apply_tiled(lambda piece: precision.run(model, *piece.split(3, 1)), x_and_known, TILE, model.halo)
        outputs = []
        for restored, known, sample in zip(to_uint8_images(x_hat), masks, samples, strict=True):
            h, w = known.shape[:2]
            image = np.where(known, sample.rgb, restored[:h, :w])
            columns = {"missing_share": float(1 - known.mean())}
            # A plane that is predicted is not that of a gray image, and to make it gray again would change the others.
            coloured = params.missing in PLANES
            outputs.append(Output(image, columns=columns, drops_alpha=params.missing == "alpha", has_colours=coloured))
        return outputs


def inpaint_unknown(model: MaskedUNet, x_BCHW: Tensor, known_BCHW: Tensor) -> Tensor:
    """The image with what is not known of it restored, (B,C,H,W)."""
    restored = model(push_pull(x_BCHW, known_BCHW), known_BCHW)
    return known_BCHW * x_BCHW + (1 - known_BCHW) * restored


def draw_damage(h: int, w: int, generator: torch.Generator) -> Tensor:
    """Known values (3,h,w) bool under one kind of damage: a plane, lost pixels, blocks, or scratches."""
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
    """(H,W,3) bool, what is known of a sample. Raises: SampleError when there is nothing to go by, or nothing is known."""
    h, w = sample.rgb.shape[:2]
    known: np.ndarray
    if params.missing in PLANES:
        known = np.ones((h, w, 3), bool)
        known[..., PLANES.index(params.missing)] = False
        return known
    if params.missing == "alpha":
        if sample.alpha is None:
            raise SampleError("NoAlpha", "missing=alpha, and the image has no transparency")
        known = sample.alpha > 0
    elif params.missing == "file":
        if sample.mask is None:
            raise SampleError("NoMask", "missing=file, and no NAME.mask.png lies beside the image")
        if sample.mask.shape != (h, w):
            size = f"{sample.mask.shape[1]}×{sample.mask.shape[0]}"
            message = f"the mask has {size} pixels and the upright image {w}×{h}; a mask covers the image as viewers show it"
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
        raise SampleError("NothingKnown", "all of the image is missing")
    return np.broadcast_to(known[..., None], (h, w, 3))
