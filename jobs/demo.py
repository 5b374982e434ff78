"""The demo: run every task on sample photos, draw the results, and print a table."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from imagemill.jobs.console import print_facts, print_table
from imagemill.jobs.demo_photos import PHOTO_FILES, PHOTOS, SHOWN, SIGMA, read_rgb, write_photos
from imagemill.jobs.failures import show_failures
from imagemill.jobs.outputs import read_newest_rows
from imagemill.models.metrics import psnr_db
from imagemill.models.resizing import limit_side
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.output.origins import is_same_place
from imagemill.pipeline.output.run_history import list_run_ids, read_run_config
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store

FOLDERS = {
    "compress": ("photos", "compressed"),
    "denoise": ("noisy", "denoised"),
    "inpaint": ("damaged", "inpainted"),
    "colorize": ("gray", "colorized"),
    "upscale": ("small", "upscaled"),
}
"""Task → the folders that it reads and writes."""
RAY_TASK = "denoise"
"""The task that runs on the Ray engine."""
STYLE_TRANSFERS: dict[str, tuple[str, dict[str, Any]]] = {
    "stylized": ("swirls.png", {"size": 512}),
    "optimized": ("glass.png", {"method": "gatys", "size": 256, "steps": 80}),
}
"""Folder that a style transfer writes → its style and its parameters."""
RESULTS_SHEET, STYLE_SHEET = "contact_sheet.png", "styles.png"
SIDE = 200
"""Side of the pictures in RESULTS_SHEET, in pixels."""
FILES = [RESULTS_SHEET, STYLE_SHEET, *PHOTO_FILES]
HEADINGS = [
    "original", "compressed", f"noisy, sigma {SIGMA:g}", "denoised", "damaged", "inpainted", "gray", "colorized",
    "half size, bicubic", "upscaled", "painted",
]  # fmt: skip


def run_demo(output: str, overwrite: bool = False) -> None:
    """Write the photos, run every task on them, draw the results, and print a table.

    Args:
        output: folder of the demo.
        overwrite: replace files that imagemill did not write. Folders with other outputs are refused all the same.

    Raises:
        ConfigError: if the folder holds files that the demo would replace.
    """
    folder = Path(output).resolve()
    record = FileRecord(Store(str(folder)), overwrite)
    record.check(FILES)
    delete_earlier_outputs(folder)
    with record:
        record.announce(FILES)
        write_photos(folder, record)
        records = run_tasks(folder)
        quality, tiles = compare_results(folder)
        record.write(RESULTS_SHEET, draw_contact_sheet(HEADINGS, tiles, SIDE))
        record.write(STYLE_SHEET, draw_styles(folder))
    print_results(folder, records, quality)


def delete_earlier_outputs(folder: Path) -> None:
    """Delete the outputs of an earlier demo, because a second run over them would find nothing to do.

    Raises:
        ConfigError: before anything is deleted, if one of the folders holds anything but outputs of the demo.
    """
    sources = {name: source for source, name in FOLDERS.values()} | dict.fromkeys(STYLE_TRANSFERS, "to_paint")
    for name, source in sources.items():
        output = Store(str(folder / name))
        inputs = [str(read_run_config(output, {"run_id": run_id}).input) for run_id in list_run_ids(output)]
        is_foreign = any(not is_same_place(url, str(folder / source)) for url in inputs)
        if is_foreign or (not inputs and output.has_files("")):
            raise ConfigError(f"{folder / name}: holds files that no demo wrote. Give another folder.")
    for name in sources:
        shutil.rmtree(folder / name, ignore_errors=True)


def run_tasks(folder: Path) -> dict[str, dict[str, Any]]:
    """Run every task and every style transfer, and return the record of each run by the folder that it wrote."""
    records = {}
    for task, (source, name) in FOLDERS.items():
        places = {"input": str(folder / source), "output": str(folder / name)}
        # One task shows that Ray works on this machine.
        engine = "ray" if task == RAY_TASK else "auto"
        records[name] = run(RunConfig(task=task, **places, reconstruct=task == "compress", engine=engine))
    for name, (style, params) in STYLE_TRANSFERS.items():
        places = {"input": str(folder / "to_paint"), "output": str(folder / name)}
        params = {"style": [str(folder / "styles" / style)], **params}
        records[name] = run(RunConfig(task="stylize", **places, params=params))
    return records


def compare_results(folder: Path) -> tuple[dict[str, list[tuple[float, float]]], list[list[Tile]]]:
    """Compare the input and the output of each task with the original photos.

    Returns:
        PSNR in dB of the input and of the output of each image, by task; and a line of tiles for each photo in SHOWN.
    """
    rows = {task: read_newest_rows(Store(str(folder / name)), []) for task, (_, name) in FOLDERS.items()}
    codes = read_newest_rows(Store(str(folder / "compressed")), ["psnr_db", "bits_per_pixel"])
    painted = read_newest_rows(Store(str(folder / "stylized")), [])
    quality: dict[str, list[tuple[float, float]]] = {task: [] for task in FOLDERS}
    tiles: dict[str, list[Tile]] = {name: [] for name in SHOWN}
    for name in PHOTOS:
        original = read_rgb(folder / "photos" / name)
        for task, (source, output_name) in FOLDERS.items():
            path = folder / source / (name if task == "compress" else str(Path(name).with_suffix(".png")))
            if not path.exists():
                continue
            before, after = read_rgb(path), read_rgb(folder / output_name / rows[task][path.name]["output_uri"])
            # A small input is shown and measured after bicubic enlargement.
            before = np.asarray(Image.fromarray(before).resize(after.shape[1::-1], Image.Resampling.BICUBIC))
            cropped = original[: after.shape[0], : after.shape[1]]
            before_db, after_db = psnr_db(before, cropped), psnr_db(after, cropped)
            quality[task].append((before_db, after_db))
            if name not in SHOWN:
                continue
            if task == "compress":
                label = f"{codes[name]['bits_per_pixel']:.2f} bits/pixel, {codes[name]['psnr_db']:.1f} dB"
                tiles[name] += [Tile(original, name), Tile(after, label)]
            else:
                # Colours show in the whole photo, everything else in its details.
                shown = (reduce_whole(before), reduce_whole(after)) if task == "colorize" else (before, after)
                tiles[name] += [Tile(rgb, f"{db:.1f} dB") for rgb, db in zip(shown, (before_db, after_db), strict=True)]
    for name, row in tiles.items():
        row.append(Tile(reduce_whole(read_rgb(folder / "stylized" / painted[name]["output_uri"])), ""))
    return quality, list(tiles.values())


def reduce_whole(rgb: np.ndarray) -> np.ndarray:
    """Return the largest square in the centre of an image, reduced to SIDE pixels."""
    return np.asarray(ImageOps.fit(Image.fromarray(rgb), (SIDE, SIDE), Image.Resampling.LANCZOS))


def draw_styles(folder: Path) -> bytes:
    """Draw the photos next to the result of each style transfer, below the styles; return a PNG."""
    rows = {name: read_newest_rows(Store(str(folder / name)), []) for name in STYLE_TRANSFERS}
    blank = np.full((256, 256, 3), 255, np.uint8)
    lines = [[(blank, ""), *((read_rgb(folder / "styles" / style), style) for style, _ in STYLE_TRANSFERS.values())]]
    for photo in SHOWN:
        painted = [(read_rgb(folder / name / rows[name][photo]["output_uri"]), "") for name in STYLE_TRANSFERS]
        lines.append([(read_rgb(folder / "to_paint" / photo), photo), *painted])
    tiles = [[Tile(limit_side(rgb, 256), label) for rgb, label in line] for line in lines]
    methods = [params.get("method", "adain") for _, params in STYLE_TRANSFERS.values()]
    return draw_contact_sheet(["photo", *methods], tiles)


def print_results(folder: Path, records: dict[str, dict[str, Any]], quality: dict[str, list[tuple[float, float]]]) -> None:
    """Print the reject of the broken photo, one line for each run, and where the results are.

    Args:
        folder: folder of the demo.
        records: record of each run, by the folder that it wrote.
        quality: PSNR in dB of the input and of the output of each image, by task.
    """
    show_failures(Store(str(folder / "compressed")))
    tasks = {name: task for task, (_, name) in FOLDERS.items()}
    lines = []
    for name, record in records.items():
        task = tasks.get(name, "stylize")
        bits = psnr = ""
        if task == "compress":
            bits = f"{record['quality']['bits_per_pixel_on_disk']:.3f}"
            psnr = f"{record['quality']['psnr_db']:.2f}"
        elif task in quality:
            psnr = " → ".join(f"{np.mean(values):.2f}" for values in zip(*quality[task], strict=True))
        counts = [f"{record[key]}" for key in ("planned", "ok", "rejected")]
        lines.append([task, name, *counts, bits, psnr, f"{record['images_per_s']:.1f}"])
    print_table(["task", "folder", "images", "ok", "rejected", "bits/pixel", "PSNR dB", "images/s"], lines)
    print_facts(
        [
            ("latents", f"{folder}/compressed/results"),
            *((name, f"{folder}/{name}/images") for name in records),
            ("before and after", f"{folder}/{RESULTS_SHEET}"),
            ("styles", f"{folder}/{STYLE_SHEET}"),
        ]
    )
