"""Evaluate `colorize` on colour photos without their chroma; the baseline is the gray image."""

import numpy as np
from PIL import Image

from imagemill.jobs.console import number
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
)
from imagemill.models.colour import rgb_to_chroma
from imagemill.models.metrics import psnr_db, ssim
from imagemill.models.objectives.colorize import colourfulness
from imagemill.pipeline.errors import ConfigError, VerificationError
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet

SHOWN = 6
CLEAR_CHROMA = 10 / 255
"""Chroma from which a pixel is clearly coloured."""
HUE_TOLERANCE = 45
"""Degrees from which a hue is wrong."""


def evaluate_colorize(config: EvaluateConfig) -> Evaluation:
    """Measure PSNR, SSIM, colourfulness (Hasler and Süsstrunk 2003) and wrong hues of outputs.

    Raises:
        ConfigError: when no image has colours.
        VerificationError: when the luma of an output, Pillow's convert("L"), differs from that of its source.
    """
    check_config(config, None)
    pictures = read_images(str(config.input), config.storage)
    # The PSNR of an image without colours would be infinite when it stays gray.
    originals = {name: picture.rgb for name, picture in pictures.items() if colourfulness(picture.rgb)}
    if not originals:
        raise ConfigError(f"input {config.input}: no image has colours. Choose other images")
    with run_pipeline(config, {}, str(config.input)) as (output, _):
        ours = {name: rgb for name, rgb in read_outputs(output).items() if name in originals}
    gray = {name: np.asarray(Image.fromarray(rgb).convert("L").convert("RGB")) for name, rgb in originals.items()}
    for name, rgb in ours.items():
        if not np.array_equal(np.asarray(Image.fromarray(rgb).convert("L")), gray[name][..., 0]):
            raise VerificationError(f"{name}: the luma differs from that of the source")
    line: TableRow = {}
    for label, images in (("gray", gray), ("ours", ours)):
        line[f"{label} dB"] = mean([psnr_db(images[n], x) for n, x in originals.items()])
        line[f"{label} SSIM"] = mean([ssim(images[n], x) for n, x in originals.items()])
    line["gain dB"] = line["ours dB"] - line["gray dB"]
    line["colourfulness"] = mean([colourfulness(x) for x in ours.values()])
    line["of the originals"] = mean([colourfulness(x) for x in originals.values()])
    line |= compare_hues(list(originals.values()), [ours[name] for name in originals])
    line["luma exact"] = "yes, in every image"
    rows = [
        [*(Tile(images[n], f"{psnr_db(images[n], originals[n]):.2f} dB") for images in (gray, ours)), Tile(originals[n], n)]
        for n in pick_evenly(list(originals), SHOWN)
    ]
    return Evaluation(
        len(originals),
        {"PSNR, SSIM and colourfulness, means over the images": [line]},
        [Measured(config.weights, f"{line['ours dB']:.2f} dB, {line['gain dB']:+.2f} over gray", [line])],
        draw_contact_sheet(["gray (baseline)", "colorized", "original"], rows),
        [
            "gray: the luma of the original without chroma",
            f"hues: of the pixels whose chroma is at least {CLEAR_CHROMA * 255:.0f} levels in the original, the share that "
            f"has as much in the output, with the right hue or with one that is more than {HUE_TOLERANCE} degrees off",
            f"left out: {number(len(pictures) - len(originals), 'image')} without colours",
        ],
    )


def compare_hues(originals: list[np.ndarray], outputs: list[np.ndarray]) -> TableRow:
    """Return which share of the clearly coloured pixels of the originals the outputs colour rightly and wrongly, in percent.

    Args:
        originals: images (H,W,3) uint8.
        outputs: the colorized images, in the same order.
    """
    clear = right = wrong = 0
    for original, output in zip(originals, outputs, strict=True):
        truth, chroma = rgb_to_chroma(original), rgb_to_chroma(output)
        is_clear = np.hypot(*truth) >= CLEAR_CHROMA
        is_coloured = is_clear & (np.hypot(*chroma) >= CLEAR_CHROMA)
        cosine = (truth * chroma).sum(0) / np.maximum(np.hypot(*truth) * np.hypot(*chroma), 1e-6)
        is_wrong = is_coloured & (cosine < np.cos(np.radians(HUE_TOLERANCE)))
        clear, wrong = clear + int(is_clear.sum()), wrong + int(is_wrong.sum())
        right += int((is_coloured & ~is_wrong).sum())
    coloured = max(1, right + wrong)
    return {
        "right hue %": 100 * right / max(1, clear),
        "wrong hue %": 100 * wrong / max(1, clear),
        "wrong of coloured %": 100 * wrong / coloured,
    }
