"""Inpaint, under damage that is drawn anew for each image but always the same: beside linear interpolation."""

import gc

import numpy as np
from matplotlib.tri import LinearTriInterpolator, Triangulation
from scipy.spatial import KDTree

from imagemill.jobs.evaluations.evaluation import (
    EvaluateConfig,
    Evaluation,
    Line,
    Measured,
    check_config,
    mean,
    read_images,
    restored,
    seed_of,
    spread,
    through_product,
)
from imagemill.models.metrics import psnr_db, ssim
from imagemill.models.objectives.inpaint import known_mask
from imagemill.models.tasks.inpaint import InpaintParams
from imagemill.models.tasks.task import Sample
from imagemill.pipeline.errors import VerificationError
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet

DAMAGES = {
    "random pixels 50 %": InpaintParams(missing="random", share=0.5, block=1),
    "random pixels 80 %": InpaintParams(missing="random", share=0.8, block=1),
    "16-px blocks 15 %": InpaintParams(missing="random", share=0.15, block=16),
    "red plane": InpaintParams(missing="red"),
    "green plane": InpaintParams(missing="green"),
    "blue plane": InpaintParams(missing="blue"),
}


def evaluate_inpaint(config: EvaluateConfig) -> Evaluation:
    """PSNR and SSIM of the whole image, and PSNR of what was missing alone, beside the floor.

    The floor is linear interpolation over the Delaunay triangulation of the known pixels (nearest neighbours outside of
    their hull), and the mean of the other two planes for a missing one.

    Raises: VerificationError when a known pixel was changed.
    """
    check_config(config, None, ("missing", "share", "block"))
    originals = {name: picture.rgb for name, picture in read_images(str(config.input), config.storage).items()}
    lines, rows = [], []
    for number, (damage, params) in enumerate(DAMAGES.items()):
        known = {name: known_mask(Sample(rgb, seed=seed_of(name)), params) for name, rgb in originals.items()}
        with through_product(config, params.model_dump(exclude_unset=True), str(config.input)) as (output, _):
            ours = restored(output)
        for name, rgb in originals.items():
            if not np.array_equal(ours[name][known[name]], rgb[known[name]]):
                raise VerificationError(f"{name}: known pixels were changed under {damage}")
        floor = {name: interpolated(rgb, known[name]) for name, rgb in originals.items()}
        line: Line = {"damage": damage}
        for label, images in (("floor", floor), ("ours", ours)):
            line[f"{label} dB"] = mean([psnr_db(images[n], x) for n, x in originals.items()])
            line[f"{label} SSIM"] = mean([ssim(images[n], x) for n, x in originals.items()])
            line[f"{label} in holes dB"] = mean([psnr_db(images[n][~known[n]], x[~known[n]]) for n, x in originals.items()])
        line["gain dB"] = line["ours dB"] - line["floor dB"]
        lines.append(line)
        shown = spread(list(originals), len(DAMAGES))
        name = shown[number % len(shown)]
        rgb = originals[name]
        rows.append(
            [
                Tile(np.where(known[name], rgb, 0), damage),
                Tile(ours[name], f"{psnr_db(ours[name], rgb):.2f} dB"),
                Tile(floor[name], f"{psnr_db(floor[name], rgb):.2f} dB"),
                Tile(rgb, name),
            ]
        )
    return Evaluation(
        len(originals),
        {"PSNR and SSIM, means over the images": lines},
        [Measured(config.weights, f"{lines[0]['ours dB']:.2f} dB with half of the pixels lost", lines)],
        draw_contact_sheet(["damaged", "restored", "floor", "original"], rows),
        [
            "known pixels are bit-identical to the source in every image",
            "floor: linear interpolation between known pixels; for a plane, the mean of the other two",
        ],
    )


def interpolated(rgb: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The image (H,W,3) uint8 with the values that are not known (H,W,3) filled in without any model."""
    filled = rgb.astype(np.float64)
    for plane in range(3):
        if not known[..., plane].any():
            filled[..., plane] = np.delete(filled, plane, 2).mean(2)
    holes = ~known.any(2)
    if holes.any():
        (y, x), (hole_y, hole_x) = np.nonzero(~holes), np.nonzero(holes)
        # The same as scipy.interpolate.griddata, whose solver for each triangle stalls when other processes want the CPUs.
        triangles = Triangulation(x, y)
        finder = triangles.get_trifinder()
        nearest = KDTree(np.stack([y, x], 1)).query(np.stack([hole_y, hole_x], 1))[1]
        for plane in range(3):
            values = filled[y, x, plane]
            linear = LinearTriInterpolator(triangles, values, finder)(hole_x, hole_y)
            filled[hole_y, hole_x, plane] = np.where(np.ma.getmaskarray(linear), values[nearest], np.ma.getdata(linear))
        # They hold each other, 140 MB an image, and Python does not see how much.
        del triangles, finder
        gc.collect()
    return filled.clip(0, 255).round().astype(np.uint8)
