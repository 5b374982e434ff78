"""The demo: the photos that scikit-image carries, through every task that has a checkpoint."""

import shutil
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.table import Table

from imagemill.jobs.console import console
from imagemill.jobs.failures import show_failures
from imagemill.jobs.outputs import read_newest_rows
from imagemill.jobs.paintings import PAINTINGS
from imagemill.models.damage import drop_strokes
from imagemill.models.metrics import psnr_db
from imagemill.models.resizing import limit_side
from imagemill.pipeline.cluster.connection import connected
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.output.origins import is_same_place
from imagemill.pipeline.output.run_history import list_run_ids, read_run_config
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store

PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
SHOWN = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SIGMA, SCRATCHES = 25.0, 24


def pixels(path: Path) -> np.ndarray:
    return decode_image(path.read_bytes()).rgb


def grainy(rgb: np.ndarray, number: int) -> np.ndarray:
    noise = np.random.default_rng(number).normal(0, SIGMA, rgb.shape)
    noisy: np.ndarray = (rgb + noise).clip(0, 255).round().astype(np.uint8)
    return noisy


def scratches(rgb: np.ndarray, number: int) -> np.ndarray:
    """(H,W) uint8, bright where the photo is lost."""
    known = drop_strokes(rgb.shape[0], rgb.shape[1], SCRATCHES, torch.Generator().manual_seed(number))
    mask: np.ndarray = (~known).numpy().astype(np.uint8) * 255
    return mask


def damaged(rgb: np.ndarray, number: int) -> np.ndarray:
    return np.where(scratches(rgb, number)[..., None] > 0, np.uint8(255), rgb)


def gray(rgb: np.ndarray, number: int) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("L").convert("RGB"))


def small(rgb: np.ndarray, number: int) -> np.ndarray:
    """Half as wide and high; the last row or column of an odd number is left out."""
    h, w = (n // 2 for n in rgb.shape[:2])
    return np.asarray(Image.fromarray(rgb[: 2 * h, : 2 * w]).resize((w, h), Image.Resampling.BICUBIC))


SPOIL: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "noisy": grainy, "damaged": damaged, "gray": gray, "small": small
}  # fmt: skip


def lay_out(folder: Path, written: FileRecord) -> Path:
    """The photos, one of them cut in half, and spoiled copies as PNG; what is there already stays."""
    clean = folder / "photos"
    for name in ("photos", *SPOIL):
        (folder / name).mkdir(parents=True, exist_ok=True)
    source = files("skimage.data")
    for number, name in enumerate(PHOTOS):
        if not (clean / name).exists():
            (clean / name).write_bytes(source.joinpath(name).read_bytes())
        for kind, spoil in SPOIL.items():
            copy = (folder / kind / name).with_suffix(".png")
            if copy.exists() or (kind != "noisy" and name not in SHOWN):
                continue
            rgb = pixels(clean / name)
            copy.write_bytes(encode_rgb(spoil(rgb, number), "PNG"))
            if kind == "damaged":
                Image.fromarray(scratches(rgb, number)).save(copy.with_suffix(".mask.png"))
    for name in SHOWN:
        written.write(f"to_paint/{name}", (clean / name).read_bytes())
    for name, paint in PAINTINGS.items():
        written.write(f"styles/{name}", encode_rgb(paint(), "PNG"))
    if not (clean / "broken.jpg").exists():
        whole = source.joinpath("rocket.jpg").read_bytes()
        (clean / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    return clean


RUNS = {"compress": ("photos", "compressed"), "denoise": ("noisy", "denoised"), "inpaint": ("damaged", "inpainted"),
        "colorize": ("gray", "colorized"), "upscale": ("small", "upscaled")}  # fmt: skip
"""Task to the folders it reads and writes."""
STYLED: dict[str, tuple[str, dict[str, Any]]] = {
    "stylized": ("swirls.png", {"size": 512}),
    "optimized": ("glass.png", {"method": "gatys", "size": 256, "steps": 80}),
}
"""Folder that a style transfer writes to its style and its parameters."""


SHEETS = ("contact_sheet.png", "styles.png")
WRITTEN = [*SHEETS, *(f"to_paint/{name}" for name in SHOWN), *(f"styles/{name}" for name in PAINTINGS)]
"""What each demo writes anew; its photos stay as they are."""


def clear_outcomes(folder: Path) -> None:
    """Delete what the demo before this one made: it shows whole runs each time, and a second one would find nothing to do.

    Raises: ConfigError, before anything is deleted, for a folder that anything but the demo wrote into.
    """
    sources = {outcome: source for source, outcome in RUNS.values()} | dict.fromkeys(STYLED, "to_paint")
    for outcome, source in sources.items():
        output = Store(str(folder / outcome))
        inputs = [str(read_run_config(output, {"run_id": run_id}).input) for run_id in list_run_ids(output)]
        others = [url for url in inputs if not is_same_place(url, str(folder / source))]
        if others or (not inputs and output.has_files("")):
            raise ConfigError(f"{folder / outcome} holds files that no demo wrote: give another folder")
    for outcome in sources:
        shutil.rmtree(folder / outcome, ignore_errors=True)


def style_sheet(folder: Path) -> bytes:
    """The photos beside what each style transfer made of them, under the styles."""
    rows = {outcome: read_newest_rows(Store(str(folder / outcome)), []) for outcome in STYLED}
    lines = [
        [(np.full((256, 256, 3), 255, np.uint8), ""), *((pixels(folder / "styles" / s), s) for s, _ in STYLED.values())]
    ]
    for name in SHOWN:
        painted = [(pixels(folder / outcome / rows[outcome][name]["output_uri"]), "") for outcome in STYLED]
        lines.append([(pixels(folder / "to_paint" / name), name), *painted])
    sheet = [[Tile(limit_side(rgb, 256), label) for rgb, label in line] for line in lines]
    return draw_contact_sheet(["photo", *(p.get("method", "adain") for _, p in STYLED.values())], sheet)


def run_demo(output: str, overwrite: bool = False) -> None:
    """Lay out the photos, run every task on them, and draw what came out.

    Args: overwrite: replace files that imagemill did not write; folders that no demo wrote into stay all the same.

    Raises: ConfigError when the folder holds files in the demo's way.
    """
    folder = Path(output).resolve()
    written = FileRecord(Store(str(folder)), overwrite)
    written.check(WRITTEN)
    clear_outcomes(folder)
    with written:
        written.announce(WRITTEN)
        show_demo(folder, lay_out(folder, written), written)


def show_demo(folder: Path, clean: Path, written: FileRecord) -> None:
    """Run every task over what is laid out, and draw and print what came out."""
    with connected(None):
        records = {
            task: run(
                RunConfig(
                    task=task, input=str(folder / source), output=str(folder / outcome), reconstruct=task == "compress"
                )
            )
            for task, (source, outcome) in RUNS.items()
        }
        styled = {
            outcome: run(
                RunConfig(
                    task="stylize",
                    input=str(folder / "to_paint"),
                    output=str(folder / outcome),
                    params={"style": [str(folder / "styles" / style)], **params},
                )
            )
            for outcome, (style, params) in STYLED.items()
        }
    outputs = {task: Store(str(folder / outcome)) for task, (_, outcome) in RUNS.items()}
    rows = {task: read_newest_rows(store, []) for task, store in outputs.items()}
    codes = read_newest_rows(outputs["compress"], ["psnr_db", "bits_per_pixel"])
    quality: dict[str, list[tuple[float, float]]] = {task: [] for task in RUNS}
    sheet: dict[str, list[Tile]] = {name: [] for name in SHOWN}
    for name in PHOTOS:
        original = pixels(clean / name)
        for task, (source, outcome) in RUNS.items():
            path = folder / source / (name if task == "compress" else str(Path(name).with_suffix(".png")))
            if not path.exists():
                continue
            before, after = pixels(path), pixels(folder / outcome / rows[task][path.name]["output_uri"])
            # What is small is shown, and measured, as bicubic enlarges it.
            before = np.asarray(Image.fromarray(before).resize(after.shape[1::-1], Image.Resampling.BICUBIC))
            whole = original[: after.shape[0], : after.shape[1]]
            quality[task].append((psnr_db(before, whole), psnr_db(after, whole)))
            if name in SHOWN:
                code = codes[name]
                coded = f"{code['bits_per_pixel']:.2f} bits/pixel, {code['psnr_db']:.1f} dB"
                tiles = [Tile(image, f"{db:.1f} dB") for image, db in zip((before, after), quality[task][-1], strict=True)]
                sheet[name] += [Tile(original, name), Tile(after, coded)] if task == "compress" else tiles
    headings = ["original", "compressed", f"noisy, sigma {SIGMA:g}", "denoised", "damaged", "inpainted", "gray", "colorized",
                "half size, bicubic", "upscaled"]  # fmt: skip
    pictures = draw_contact_sheet(headings, list(sheet.values()), side=200), style_sheet(folder)
    for name, data in zip(SHEETS, pictures, strict=True):
        written.write(name, data)

    show_failures(outputs["compress"])
    table = Table("task", "images", "ok", "rejected", "bits/pixel", "PSNR dB", "images/s")
    for task, record in records.items():
        counts = [str(record[key]) for key in ("planned", "ok", "rejected")]
        if task == "compress":
            figures = f"{record['quality']['bits_per_pixel_on_disk']:.3f}", f"{record['quality']['psnr_db']:.2f}"
        else:
            figures = "", " → ".join(f"{np.mean(values):.2f}" for values in zip(*quality[task], strict=True))
        table.add_row(task, *counts, *figures, f"{record['images_per_s']:.1f}")
    for outcome, record in styled.items():
        counts = [str(record[key]) for key in ("planned", "ok", "rejected")]
        table.add_row(f"stylize → {outcome}", *counts, "", "", f"{record['images_per_s']:.1f}")
    console.print(table)
    folders = [(o, f"{o}/images") for o in (*(o for _, o in RUNS.values()), *STYLED)]
    for what, where in (
        ("latents", "compressed/results"),
        *folders,
        *zip(("before/after", "styles"), SHEETS, strict=True),
    ):
        console.print(f"{what:13}{folder / where}", soft_wrap=True)
