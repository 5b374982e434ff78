"""Upscale: images that bicubic reduced, enlarged again by the product, beside bicubic."""

import numpy as np
from PIL import Image

from imagemill.jobs.evaluations.evaluation import (
    EvaluateConfig,
    Evaluation,
    Line,
    Measured,
    check_config,
    mean,
    read_images,
    restored,
    spread,
    through_product,
    work_folder,
)
from imagemill.models import checkpoint as checkpoints
from imagemill.models.metrics import SSIM_SIDE, psnr_db, psnr_from_mse, ssim
from imagemill.pipeline.images.encode import encode_image
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet
from imagemill.pipeline.storage import Store

SHOWN = 6
# Luma of ITU-R BT.601, of which papers on super-resolution give the PSNR; in MATLAB's rgb2ycbcr it spans 219 levels.
LUMA = np.array([65.481, 128.553, 24.966], np.float32) / 255


def evaluate_upscale(config: EvaluateConfig) -> Evaluation:
    """PSNR of luma, as papers have it, and PSNR and SSIM in RGB, of images reduced by Pillow's bicubic and enlarged again.

    What a model's scale does not divide of an image is cut off at its right and bottom.
    """
    job = check_config(config, None)
    scale: int = checkpoints.build(job.card, job.weights).scale
    originals, small = {}, {}
    for name, picture in read_images(str(config.input), config.storage, SSIM_SIDE + 2 * scale).items():
        h, w = (n // scale * scale for n in picture.rgb.shape[:2])
        originals[name] = picture.rgb[:h, :w]
        image = Image.fromarray(originals[name]).convert("L" if picture.is_gray else "RGB")
        small[name] = image.resize((w // scale, h // scale), Image.Resampling.BICUBIC)
    with work_folder() as folder:
        for name, image in small.items():
            Store(folder).write(f"{name}.png", encode_image(image, "PNG"))
        with through_product(config, {}, folder) as (output, _):
            ours = {name.removesuffix(".png"): rgb for name, rgb in restored(output).items()}
    bicubic = {
        n: np.asarray(small[n].resize(x.shape[1::-1], Image.Resampling.BICUBIC).convert("RGB")) for n, x in originals.items()
    }
    line: Line = {}
    for label, images in (("bicubic", bicubic), ("ours", ours)):
        line[f"{label} Y dB"] = mean([luma_psnr_db(images[n], x, scale) for n, x in originals.items()])
        line[f"{label} RGB dB"] = mean([psnr_db(images[n], x) for n, x in originals.items()])
        line[f"{label} SSIM"] = mean([ssim(images[n], x) for n, x in originals.items()])
    for kind in ("Y", "RGB"):
        line[f"gain {kind} dB"] = line[f"ours {kind} dB"] - line[f"bicubic {kind} dB"]
    rows = [
        [
            *(Tile(images[n], f"{luma_psnr_db(images[n], originals[n], scale):.2f} dB") for images in (bicubic, ours)),
            Tile(originals[n], n),
        ]
        for n in spread(list(originals), SHOWN)
    ]
    return Evaluation(
        len(originals),
        {f"PSNR and SSIM at ×{scale}, means over the images": [line]},
        [Measured(config.weights, f"{line['ours Y dB']:.2f} dB, {line['gain Y dB']:+.2f} over bicubic", [line])],
        draw_contact_sheet(["bicubic", "upscaled", "original"], rows),
        [f"Y: luma as MATLAB's rgb2ycbcr has it, without a border of {scale} pixels; RGB and SSIM: of all, in RGB"],
    )


def luma_psnr_db(a: np.ndarray, b: np.ndarray, border: int) -> float:
    """PSNR in dB of the luma of two images (H,W,3) uint8, without `border` pixels at each edge, as papers have it."""
    inside = slice(border, -border)
    difference = (a[inside, inside].astype(np.float32) - b[inside, inside]) @ LUMA
    return psnr_from_mse(float(np.square(difference).mean(dtype=np.float64)))
