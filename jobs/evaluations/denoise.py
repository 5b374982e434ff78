"""Evaluate `denoise` at several noise levels: on noisy 8-bit files end to end, and on float noise as in papers."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from imagemill.jobs.console import number
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
    temporary_folder,
)
from imagemill.models import checkpoint as checkpoints
from imagemill.models.architectures.unet import UNet
from imagemill.models.batches import pad_to_stride, to_uint8_images
from imagemill.models.metrics import psnr_db, ssim
from imagemill.models.photo_noise import add_sensor_noise, compress_as_jpeg
from imagemill.models.precision import Precision
from imagemill.models.tasks.denoise import DenoiseParams
from imagemill.pipeline.config import validate
from imagemill.pipeline.images.decode import DecodedImage
from imagemill.pipeline.images.encode import encode_image
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet
from imagemill.pipeline.storage import Store

SIGMAS = [15.0, 25.0, 50.0]


def draw_noise(name: str, picture: DecodedImage, sigma: float) -> np.ndarray:
    """Draw Gaussian noise (H,W,3) float32 in 8-bit levels; the channels of a gray image have the same noise."""
    h, w, planes = picture.rgb.shape
    shape = (h, w, 1 if picture.is_gray else planes)
    noise = np.random.default_rng(image_seed(name)).normal(0, sigma, shape).astype(np.float32)
    return np.broadcast_to(noise, (h, w, planes))


def evaluate_denoise(config: EvaluateConfig) -> Evaluation:
    """Measure PSNR and SSIM of noisy and denoised images, with the estimated ("blind") and the true level ("given").

    "files": noisy copies are clipped and rounded to 8 bits, and the pipeline processes them. "float": the noise is neither
    clipped nor rounded, and the network processes it directly. All results are rounded to 8 bits. An imported network
    estimates no level: it is measured with the given level if it takes one, otherwise blind. Noise like that of photos
    exists only in files and has no one level to give.
    """
    # An imported network may take no level, so the list `at` only says how much noise is added.
    job = check_config(config.model_copy(update={"at": []}), "sigma")
    for sigma in config.at:
        validate(DenoiseParams, {"sigma": sigma}, "at", ("params",))
    contract = job.card.contract
    labels = ["blind", "given"] if contract is None else ["given" if contract.noise_level else "blind"]
    is_photo = config.noise == "photo"
    if is_photo:
        labels = labels[:1]
    first, model = labels[0], checkpoints.build(job.card, job.weights)
    originals = read_images(str(config.input), config.storage)
    sigmas = config.at or SIGMAS
    lines, rows = [], []
    for sigma in sigmas:
        with temporary_folder() as folder:
            noisy = {name: add_noise(name, picture, sigma, config.noise) for name, picture in originals.items()}
            for name, rgb in noisy.items():
                image = Image.fromarray(rgb)
                Store(folder).write(
                    f"{name}.png", encode_image(image.convert("L") if originals[name].is_gray else image, "PNG")
                )
            results = {}
            for label in labels:
                with run_pipeline(config, {"sigma": sigma} if label == "given" else {}, folder) as (output, _):
                    results[label] = {name.removesuffix(".png"): rgb for name, rgb in read_outputs(output).items()}
        line: TableRow = {"sigma": sigma, "noisy dB": 0.0, "noisy SSIM": 0.0}
        for label, images in [("noisy", noisy), *((f"files {label}", results[label]) for label in labels)]:
            line[f"{label} dB"] = mean([psnr_db(images[n], p.rgb) for n, p in originals.items()])
            line[f"{label} SSIM"] = mean([ssim(images[n], p.rgb) for n, p in originals.items()])
        for label in [] if is_photo else labels:
            level = sigma if label == "given" else None
            line[f"float {label} dB"] = mean(
                [psnr_db(denoise_float(model, n, p, sigma, level), p.rgb) for n, p in originals.items()]
            )
        lines.append(line)
        rows += [
            [
                Tile(noisy[n], f"sigma {sigma:g}: {psnr_db(noisy[n], originals[n].rgb):.2f} dB"),
                Tile(results[first][n], f"{psnr_db(results[first][n], originals[n].rgb):.2f} dB"),
                Tile(originals[n].rgb, n),
            ]
            for n in pick_evenly(list(originals), 2)
        ]
    gray = sum(picture.is_gray for picture in originals.values())
    middle = lines[len(lines) // 2]
    return Evaluation(
        len(originals),
        {"PSNR and SSIM, means over the images": lines},
        [Measured(config.weights, f"{middle[f'files {first} dB']:.2f} dB at sigma {middle['sigma']:g}, {first}", lines)],
        draw_contact_sheet(["noisy", f"denoised, {first}", "original"], rows),
        [
            f"gray, with one plane of noise each: {gray} of {number(len(originals), 'image')}",
            "noise like that of photos, as JPEG; sigma is its level at mid gray"
            if is_photo
            else "files: noise clipped and rounded to 8 bits, processed by a run; float: neither, processed by the network",
        ],
    )


def add_noise(name: str, picture: DecodedImage, sigma: float, kind: str) -> np.ndarray:
    """Return a noisy image (H,W,3) uint8: Gaussian noise, clipped and rounded, or noise like that of photos, as JPEG."""
    if kind == "gaussian":
        noisy: np.ndarray = (picture.rgb + draw_noise(name, picture, sigma)).clip(0, 255).round().astype(np.uint8)
        return noisy
    generator = torch.Generator().manual_seed(image_seed(name))
    x = torch.from_numpy(picture.rgb.copy()).permute(2, 0, 1)[None].float() / 255
    noisy_B3HW = add_sensor_noise(x[:, :1] if picture.is_gray else x, torch.tensor([sigma / 255]), generator)
    return to_uint8_images(compress_as_jpeg(noisy_B3HW.expand_as(x), generator, share=1))[0]


def denoise_float(model: Any, name: str, picture: DecodedImage, sigma: float, level: float | None) -> np.ndarray:
    """Denoise an image with unclipped float noise of `sigma`; `level` is the given level, or None to estimate it."""
    h, w = picture.rgb.shape[:2]
    noisy = (picture.rgb + draw_noise(name, picture, sigma)) / np.float32(255)
    x = torch.from_numpy(pad_to_stride(noisy, model.stride)).permute(2, 0, 1)[None]
    sigma_1 = None if level is None else torch.tensor([level / 255])
    with torch.inference_mode(), Precision().autocast():
        if level is None and isinstance(model, UNet):
            # As in a run, the padding is not part of the image.
            sigma_1 = model.noise_level(x[..., :h, :w])
        x_hat = to_uint8_images(model(x, sigma_1))[0, :h, :w]
    # A run converts the output of a gray image to gray.
    return np.asarray(Image.fromarray(x_hat).convert("L").convert("RGB")) if picture.is_gray else x_hat
