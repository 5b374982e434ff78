"""Evaluate `upscale` on images that the bicubic filter reduced; the baseline is bicubic interpolation."""

import numpy as np
from PIL import Image

from imagemill.jobs.evaluations.evaluation import (
    EvaluateConfig,
    Evaluation,
    Measured,
    TableRow,
    check_config,
    mean,
    pick_evenly,
    read_images,
    read_outputs,
    run_pipeline,
    temporary_folder,
)
from imagemill.models import checkpoint as checkpoints
from imagemill.models.metrics import SSIM_SIDE, psnr_db, psnr_from_mse, ssim
from imagemill.pipeline.images.encode import encode_image
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet
from imagemill.pipeline.storage import Store

SHOWN = 6
# Luma of ITU-R BT.601 as in MATLAB's rgb2ycbcr, where it spans 219 levels. Papers on super-resolution report its PSNR.
LUMA = np.array([65.481, 128.553, 24.966], np.float32) / 255


def evaluate_upscale(config: EvaluateConfig) -> Evaluation:
    """Measure the PSNR of luma, as papers do, and PSNR and SSIM in RGB, of images that are reduced and enlarged again.

    Images are cropped at the right and bottom to multiples of the model's scale.
    """
    job = check_config(config, None)
    scale: int = checkpoints.build(job.card, job.weights).scale
    originals, small = {}, {}
    for name, picture in read_images(str(config.input), config.storage, SSIM_SIDE + 2 * scale).items():
        h, w = (n // scale * scale for n in picture.rgb.shape[:2])
        originals[name] = picture.rgb[:h, :w]
        image = Image.fromarray(originals[name]).convert("L" if picture.is_gray else "RGB")
        small[name] = image.resize((w // scale, h // scale), Image.Resampling.BICUBIC)
    with temporary_folder() as folder:
        for name, image in small.items():
            Store(folder).write(f"{name}.png", encode_image(image, "PNG"))
        with run_pipeline(config, {}, folder) as (output, _):
            ours = {name.removesuffix(".png"): rgb for name, rgb in read_outputs(output).items()}
    bicubic = {
        n: np.asarray(small[n].resize(x.shape[1::-1], Image.Resampling.BICUBIC).convert("RGB")) for n, x in originals.items()
    }
    line: TableRow = {}
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
        for n in pick_evenly(list(originals), SHOWN)
    ]
    return Evaluation(
        len(originals),
        {f"PSNR and SSIM at ×{scale}, means over the images": [line]},
        [Measured(config.weights, f"{line['ours Y dB']:.2f} dB, {line['gain Y dB']:+.2f} over bicubic", [line])],
        draw_contact_sheet(["bicubic", "upscaled", "original"], rows),
        [f"Y: luma of MATLAB's rgb2ycbcr without a border of {scale} pixels; RGB and SSIM: all pixels, in RGB"],
    )


def luma_psnr_db(a: np.ndarray, b: np.ndarray, border: int) -> float:
    """Return the PSNR in dB of the luma of two images (H,W,3) uint8, without `border` pixels at each edge."""
    inside = slice(border, -border)
    difference = (a[inside, inside].astype(np.float32) - b[inside, inside]) @ LUMA
    return psnr_from_mse(float(np.square(difference).mean(dtype=np.float64)))
