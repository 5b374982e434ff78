"""How good the shipped models are, measured through the product itself on a folder of clean images."""

import io
import tempfile
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from models import checkpoint as checkpoints
from models.metrics import psnr_db
from models.precision import Precision
from models.tasks import TASKS
from models.tasks.task import pad_to, to_uint8
from pipeline.cluster import connected
from pipeline.config import RunConfig
from pipeline.pixels import decode, encode_rgb
from pipeline.run import run
from pipeline.schema import image_id
from pipeline.sources.folder import list_folder
from pipeline.storage import Store

console = Console(highlight=False)
DEFAULTS = {"compress": [18.0, 26.0, 40.0, 64.0], "denoise": [15.0, 25.0, 50.0]}
"""Quantiser steps and noise levels that are measured unless others are given."""
JPEG_QUALITIES = (10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 95)


def read_images(url: str) -> dict[str, np.ndarray]:
    """Every image (H,W,3) uint8 of a folder, by its relative path."""
    store = Store(url)
    names = [listed.rel_path for listed in list_folder(store) if listed]
    return {name: decode(store.read(name)).rgb for name in names}


def noise_for(name: str, shape: tuple[int, ...], sigma: float) -> np.ndarray:
    """Gaussian noise (H,W,3) float32 in 8-bit levels, seeded by the image's identity."""
    seed = int(image_id(name)[:16], 16)
    return np.random.default_rng(seed).normal(0, sigma, shape).astype(np.float32)


def evaluate_denoise(url: str, sigmas: list[float], checkpoint: str | None) -> list[dict[str, Any]]:
    """PSNR over a folder with noise of each level: blind and with the level given.

    Two protocols: noisy files rounded and clipped to 8 bits, run through the whole product; and, as papers do, noise in
    float that is neither, through the network alone. Results are rounded to 8 bits before PSNR in both.
    """
    images = read_images(url)
    card = checkpoints.read_card(checkpoint or TASKS["denoise"].default_checkpoint)
    model = checkpoints.build(card, checkpoints.read_weights(checkpoint or card.name, card))
    lines = []
    for sigma in sigmas:
        with tempfile.TemporaryDirectory() as folder:
            noisy = Store(f"{folder}/noisy")
            for name, rgb in images.items():
                grainy = (rgb + noise_for(name, rgb.shape, sigma)).clip(0, 255).round().astype(np.uint8)
                noisy.write(f"{name}.png", encode_rgb(grainy, "PNG"))
            line: dict[str, Any] = {"sigma": sigma, "images": len(images)}
            for label, params in (("blind", {}), ("given", {"sigma": sigma})):
                output = f"{folder}/{label}"
                run(RunConfig(task="denoise", input=noisy.url, output=output, params=params, checkpoint=checkpoint))
                pairs = [(decode(Store(f"{output}/images").read(f"{n}.png.png")).rgb, x) for n, x in images.items()]
                line[f"8-bit files, {label}"] = float(np.mean([psnr_db(a, b) for a, b in pairs]))
        line["float, blind"] = float(np.mean([float_psnr(model, n, x, sigma, blind=True) for n, x in images.items()]))
        line["float, given"] = float(np.mean([float_psnr(model, n, x, sigma, blind=False) for n, x in images.items()]))
        lines.append(line)
    return lines


def float_psnr(model: Any, name: str, rgb: np.ndarray, sigma: float, blind: bool) -> float:
    """PSNR of one image under unclipped float noise."""
    noisy = (rgb + noise_for(name, rgb.shape, sigma)) / np.float32(255)
    x = torch.from_numpy(pad_to(noisy, model.stride)).permute(2, 0, 1)[None]
    with torch.inference_mode(), Precision().autocast():
        x_hat = model(x, None if blind else torch.tensor([sigma / 255]))
    return psnr_db(to_uint8(x_hat)[0, : rgb.shape[0], : rgb.shape[1]], rgb)


def jpeg_curve(images: list[np.ndarray], subsampling: int) -> list[tuple[float, float]]:
    """(bits a pixel, mean PSNR dB) of Pillow's JPEG with optimised Huffman tables; subsampling 0 is 4:4:4, 2 is 4:2:0."""
    curve = []
    pixels = sum(x.shape[0] * x.shape[1] for x in images)
    for quality in JPEG_QUALITIES:
        size, quality_db = 0, []
        for x in images:
            file = io.BytesIO()
            Image.fromarray(x).save(file, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
            size += file.tell()
            quality_db.append(psnr_db(np.asarray(Image.open(file)), x))
        curve.append((size * 8 / pixels, float(np.mean(quality_db))))
    return curve


def evaluate_compress(url: str, steps: list[float], checkpoint: str | None) -> list[dict[str, Any]]:
    """Bits a pixel (all bytes of the results' Parquet files) and PSNR at each step, and JPEG's PSNR at the same bits."""
    images = list(read_images(url).values())
    curves = {"JPEG 4:2:0": jpeg_curve(images, 2), "JPEG 4:4:4": jpeg_curve(images, 0)}
    lines = []
    for step in steps:
        with tempfile.TemporaryDirectory() as folder:
            config = RunConfig(task="compress", input=url, output=folder, params={"step": step}, checkpoint=checkpoint)
            quality = run(config)["quality"]
        bits = quality["bits_per_pixel_on_disk"]
        line = {"step": step, "images": len(images), "bits/pixel": bits, "PSNR dB": quality["psnr_db"]}
        for name, curve in curves.items():
            line[f"{name} dB"] = float(np.interp(bits, [b for b, _ in curve], [db for _, db in curve]))
        lines.append(line)
    return lines


def show_evaluation(task: str, url: str, at: list[float], checkpoint: str | None) -> list[dict[str, Any]]:
    """Measure and print a table; `at` holds noise levels or quantiser steps."""
    with connected(None):
        lines = (evaluate_denoise if task == "denoise" else evaluate_compress)(url, at, checkpoint)
    table = Table(*lines[0])
    for line in lines:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) and v % 1 else f"{v:g}" for v in line.values()))
    console.print(table)
    return lines
