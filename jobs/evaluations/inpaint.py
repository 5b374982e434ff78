"""Evaluate `inpaint` under several kinds of reproducible damage; the baseline ("floor") is linear interpolation."""

import gc

import numpy as np
from matplotlib.tri import LinearTriInterpolator, Triangulation
from scipy.spatial import KDTree

from imagemill.jobs.evaluations.evaluation import (
    EvaluateConfig,
    Evaluation,
    Measured,
    TableRow,
    check_config,
    image_seed,
    mean,
    pick_evenly,
    read_images,
    read_outputs,
    run_pipeline,
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
    """Measure PSNR and SSIM of whole images, and the PSNR of the missing pixels alone.

    The baseline is linear interpolation over the Delaunay triangulation of the known pixels (nearest neighbours outside
    their convex hull), or the mean of the other two planes for a missing plane.

    Raises:
        VerificationError: when a known pixel differs from the source.
    """
    contract = check_config(config, None, ("missing", "share", "block")).card.contract
    # An imported network fills whole pixels, never one plane.
    damages = {name: params for name, params in DAMAGES.items() if params.missing == "random" or contract is None}
    originals = {name: picture.rgb for name, picture in read_images(str(config.input), config.storage).items()}
    lines, rows = [], []
    for number, (damage, params) in enumerate(damages.items()):
        known = {name: known_mask(Sample(rgb, seed=image_seed(name)), params) for name, rgb in originals.items()}
        with run_pipeline(config, params.model_dump(exclude_unset=True), str(config.input)) as (output, _):
            ours = read_outputs(output)
        for name, rgb in originals.items():
            if not np.array_equal(ours[name][known[name]], rgb[known[name]]):
                raise VerificationError(f"{name}: known pixels differ from the source under the damage {damage}")
        floor = {name: interpolate(rgb, known[name]) for name, rgb in originals.items()}
        line: TableRow = {"damage": damage}
        for label, images in (("floor", floor), ("ours", ours)):
            line[f"{label} dB"] = mean([psnr_db(images[n], x) for n, x in originals.items()])
            line[f"{label} SSIM"] = mean([ssim(images[n], x) for n, x in originals.items()])
            line[f"{label} in holes dB"] = mean([psnr_db(images[n][~known[n]], x[~known[n]]) for n, x in originals.items()])
        line["gain dB"] = line["ours dB"] - line["floor dB"]
        lines.append(line)
        shown = pick_evenly(list(originals), len(damages))
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


def interpolate(rgb: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill the unknown values of an image (H,W,3) uint8 without a model; `known` is (H,W,3) bool."""
    filled = rgb.astype(np.float64)
    for plane in range(3):
        if not known[..., plane].any():
            filled[..., plane] = np.delete(filled, plane, 2).mean(2)
    holes = ~known.any(2)
    if holes.any():
        (y, x), (hole_y, hole_x) = np.nonzero(~holes), np.nonzero(holes)
        # The result of scipy.interpolate.griddata, whose solver for each triangle is very slow next to other processes.
        triangles = Triangulation(x, y)
        finder = triangles.get_trifinder()
        nearest = KDTree(np.stack([y, x], 1)).query(np.stack([hole_y, hole_x], 1))[1]
        for plane in range(3):
            values = filled[y, x, plane]
            linear = LinearTriInterpolator(triangles, values, finder)(hole_x, hole_y)
            filled[hole_y, hole_x, plane] = np.where(np.ma.getmaskarray(linear), values[nearest], np.ma.getdata(linear))
        # A reference cycle of 140 MB an image, whose size Python's garbage collector does not know.
        del triangles, finder
        gc.collect()
    return filled.clip(0, 255).round().astype(np.uint8)
