"""The demo: the photos that scikit-image carries, compressed, and denoised from noisy copies."""

import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from jobs.inspect import rows_of, show_failures
from models.metrics import psnr_db
from pipeline.cluster import connected
from pipeline.config import RunConfig
from pipeline.pixels import decode, encode_rgb
from pipeline.report import Tile, contact_sheet
from pipeline.run import run
from pipeline.storage import Store

console = Console(highlight=False)
PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png",
    "color.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png",
    "motorcycle_right.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip
SHOWN = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SIGMA = 25.0


def pixels(path: Path) -> np.ndarray:
    return decode(path.read_bytes()).rgb


def lay_out(folder: Path) -> tuple[Path, Path]:
    """The photos, one of them cut in half, and noisy copies (Gaussian, sigma 25 of 255); what is there already stays."""
    clean, noisy = folder / "photos", folder / "noisy"
    for target in (clean, noisy):
        target.mkdir(parents=True, exist_ok=True)
    source = files("skimage.data")
    for number, name in enumerate(PHOTOS):
        if not (clean / name).exists():
            (clean / name).write_bytes(source.joinpath(name).read_bytes())
        copy = (noisy / name).with_suffix(".png")
        if not copy.exists():
            rgb = pixels(clean / name).astype(np.float32)
            rgb += np.random.default_rng(number).normal(0, SIGMA, rgb.shape).astype(np.float32)
            copy.write_bytes(encode_rgb(rgb.clip(0, 255).round().astype(np.uint8), "PNG"))
    if not (clean / "broken.jpg").exists():
        whole = source.joinpath("rocket.jpg").read_bytes()
        (clean / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    return clean, noisy


def run_demo(output: str) -> None:
    folder = Path(output).resolve()
    clean, noisy = lay_out(folder)
    outputs = {"compress": folder / "compressed", "denoise": folder / "denoised"}
    # The demo shows a whole run each time; a second run into the same folder would find nothing to do.
    for path in outputs.values():
        shutil.rmtree(path, ignore_errors=True)
    with connected(None):
        records = {
            "compress": run(RunConfig(task="compress", input=str(clean), output=str(outputs["compress"]), reconstruct=True)),
            "denoise": run(RunConfig(task="denoise", input=str(noisy), output=str(outputs["denoise"]))),
        }
    compressed = rows_of(Store(str(outputs["compress"])), ["psnr_db", "bits_per_pixel"])
    denoised = rows_of(Store(str(outputs["denoise"])), ["sigma"])
    before, after, sheet = [], [], []
    for name in PHOTOS:
        copy = str(Path(name).with_suffix(".png"))
        original, grainy = pixels(clean / name), pixels(noisy / copy)
        restored = pixels(outputs["denoise"] / denoised[copy]["output_uri"])
        before.append(psnr_db(grainy, original))
        after.append(psnr_db(restored, original))
        if name in SHOWN:
            row = compressed[name]
            decoded = pixels(outputs["compress"] / row["output_uri"])
            sheet.append([
                Tile(original, name),
                Tile(decoded, f"{row['bits_per_pixel']:.2f} bits/pixel, {row['psnr_db']:.2f} dB"),
                Tile(grainy, f"{before[-1]:.2f} dB"),
                Tile(restored, f"{after[-1]:.2f} dB, estimated sigma {denoised[copy]['sigma']:.1f}"),
            ])  # fmt: skip
    picture = folder / "contact_sheet.png"
    picture.write_bytes(contact_sheet(["original", "compressed", f"noisy, sigma {SIGMA:g}", "denoised"], sheet))

    quality = records["compress"]["quality"]
    show_failures(Store(str(outputs["compress"])))
    table = Table("task", "images", "ok", "rejected", "bits/pixel", "PSNR dB", "images/s")
    for task, bits, db in (
        ("compress", f"{quality['bits_per_pixel_on_disk']:.3f}", f"{quality['psnr_db']:.2f}"),
        ("denoise", "", f"{np.mean(before):.2f} → {np.mean(after):.2f}"),
    ):
        record = records[task]
        counts = [str(record[key]) for key in ("planned", "ok", "rejected")]
        table.add_row(task, *counts, bits, db, f"{record['images_per_s']:.1f}")
    console.print(table)
    for what, path in (("latents", outputs["compress"] / "results"), ("decoded", outputs["compress"] / "images"),
                       ("denoised", outputs["denoise"] / "images"), ("before/after", picture)):  # fmt: skip
        console.print(f"{what:13}{path}", soft_wrap=True)
