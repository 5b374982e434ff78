"""The demo: run every task on sample photos, draw the results, and print a table."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from imagemill.jobs.console import print_facts, print_table
from imagemill.jobs.demo_photos import PHOTO_FILES, PHOTOS, read_rgb, write_photos
from imagemill.jobs.demo_pictures import DETAILS, Comparison, draw_pairs, draw_styles, draw_task, encode_jpeg_of_size
from imagemill.jobs.failures import show_failures
from imagemill.jobs.outputs import read_newest_rows
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.output.origins import is_same_place
from imagemill.pipeline.output.run_history import list_run_ids, read_run_config
from imagemill.pipeline.reports.sheets import Tile
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
    "stained": ("glass.png", {"size": 512}),
    "optimized": ("glass.png", {"method": "gatys", "size": 384, "steps": 60}),
}
"""Folder that a style transfer writes → its style and its parameters."""
STYLE_EXAMPLES = (("rocket.jpg", "stylized"), ("coffee.png", "stained"), ("coffee.png", "optimized"))
"""Photos and style transfers on STYLE_SHEET."""
RESULTS_SHEET, STYLE_SHEET = "contact_sheet.png", "pictures/stylize.png"
TASK_SHEETS = {task: f"pictures/{task}.png" for task in FOLDERS}
FILES = [RESULTS_SHEET, STYLE_SHEET, *TASK_SHEETS.values(), *PHOTO_FILES]


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
        comparisons = {task: compare_results(folder, task) for task in FOLDERS}
        for task, name in TASK_SHEETS.items():
            record.write(name, draw_task(task, comparisons[task]))
        record.write(STYLE_SHEET, draw_styles([read_style_example(folder, *example) for example in STYLE_EXAMPLES]))
        record.write(RESULTS_SHEET, draw_pairs(comparisons | {"stylize": compare_styles(folder)}))
    print_results(folder, records, comparisons)


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


def compare_results(folder: Path, task: str) -> dict[str, Comparison]:
    """Compare what a task read and wrote with the original photos, by the name of the photo.

    `compress` reads the originals. Its latents are compared with JPEG files of their size, which this function encodes.
    """
    source, written = FOLDERS[task]
    rows = read_newest_rows(Store(str(folder / written)), ["bits_per_pixel"] if task == "compress" else [])
    comparisons = {}
    # Only the JPEG files of photos that are shown are worth their time.
    for name in DETAILS[task] if task == "compress" else PHOTOS:
        path = folder / source / (name if task == "compress" else str(Path(name).with_suffix(".png")))
        if not path.exists():
            continue
        row, original = rows[path.name], read_rgb(folder / "photos" / name)
        after, kilobytes = read_rgb(folder / written / row["output_uri"]), None
        if task == "compress":
            size = row["bits_per_pixel"] * original.shape[0] * original.shape[1] / 8
            jpeg = encode_jpeg_of_size(original, size)
            before, kilobytes = decode_image(jpeg).rgb, (len(jpeg) / 1000, size / 1000)
        else:
            # A small input is shown and measured after bicubic enlargement.
            before = np.asarray(Image.fromarray(read_rgb(path)).resize(after.shape[1::-1], Image.Resampling.BICUBIC))
        comparisons[name] = Comparison(before, after, original[: after.shape[0], : after.shape[1]], kilobytes)
    return comparisons


def read_style_example(folder: Path, photo: str, transfer: str) -> tuple[Tile, Tile, Tile]:
    """Read a photo, a style, and the photo in this style."""
    style, params = STYLE_TRANSFERS[transfer]
    row = read_newest_rows(Store(str(folder / transfer)), [])[photo]
    method = "--method gatys, by optimisation" if params.get("method") == "gatys" else "in one pass"
    return (
        Tile(read_rgb(folder / "to_paint" / photo), photo),
        Tile(read_rgb(folder / "styles" / style), style),
        Tile(read_rgb(folder / transfer / row["output_uri"]), method),
    )


def compare_styles(folder: Path) -> dict[str, Comparison]:
    """Read the photos in STYLE_EXAMPLES, before and after one pass, by the name of the photo."""
    examples = [read_style_example(folder, *example) for example in STYLE_EXAMPLES[:2]]
    return {photo.label: Comparison(photo.rgb, painted.rgb, photo.rgb) for photo, _, painted in examples}


def print_results(folder: Path, records: dict[str, dict[str, Any]], comparisons: dict[str, dict[str, Comparison]]) -> None:
    """Print the reject of the broken photo, one line for each run, and where the results are.

    Args:
        folder: folder of the demo.
        records: record of each run, by the folder that it wrote.
        comparisons: by task and photo.
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
        elif task in comparisons:
            both = zip(*(shown.psnr_db() for shown in comparisons[task].values()), strict=True)
            psnr = " → ".join(f"{np.mean(values):.2f}" for values in both)
        counts = [f"{record[key]}" for key in ("planned", "ok", "rejected")]
        lines.append([task, name, *counts, bits, psnr, f"{record['images_per_s']:.1f}"])
    print_table(["task", "folder", "images", "ok", "rejected", "bits/pixel", "PSNR dB", "images/s"], lines)
    print_facts(
        [
            ("latents", f"{folder}/compressed/results"),
            *((name, f"{folder}/{name}/images") for name in records),
            ("before and after", f"{folder}/{RESULTS_SHEET}"),
            ("next to the originals", f"{folder}/pictures"),
        ]
    )
