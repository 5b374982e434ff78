"""Denoise, at levels of Gaussian noise: files through the product, and float noise through the network, as papers do."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from imagemill.jobs.console import number
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
    work_folder,
)
from imagemill.models import checkpoint as checkpoints
from imagemill.models.batches import pad_to_stride, to_uint8_images
from imagemill.models.metrics import psnr_db, ssim
from imagemill.models.precision import Precision
from imagemill.pipeline.images.decode import DecodedImage
from imagemill.pipeline.images.encode import encode_image
from imagemill.pipeline.reports.sheets import Tile, draw_contact_sheet
from imagemill.pipeline.storage import Store

SIGMAS = [15.0, 25.0, 50.0]


def noise_for(name: str, picture: DecodedImage, sigma: float) -> np.ndarray:
    """Gaussian noise (H,W,3) float32 in 8-bit levels; a gray file has one plane of it, seen three times."""
    h, w, planes = picture.rgb.shape
    shape = (h, w, 1 if picture.is_gray else planes)
    noise = np.random.default_rng(seed_of(name)).normal(0, sigma, shape).astype(np.float32)
    return np.broadcast_to(noise, (h, w, planes))


def evaluate_denoise(config: EvaluateConfig) -> Evaluation:
    """PSNR and SSIM with noise of each level: of the noisy files, and denoised blind and with the level given.

    "files": noisy copies are cut and rounded to 8 bits and run through the product. "float": the noise is neither cut nor
    rounded, and the network is run alone. Results are rounded to 8 bits before PSNR in both.
    """
    job = check_config(config, "sigma")
    model = checkpoints.build(job.card, job.weights)
    originals = read_images(str(config.input), config.storage)
    sigmas = config.at or SIGMAS
    lines, rows = [], []
    for sigma in sigmas:
        with work_folder() as folder:
            noisy = {name: grainy(name, picture, sigma) for name, picture in originals.items()}
            for name, rgb in noisy.items():
                image = Image.fromarray(rgb)
                Store(folder).write(
                    f"{name}.png", encode_image(image.convert("L") if originals[name].is_gray else image, "PNG")
                )
            results = {}
            for label, params in (("blind", {}), ("given", {"sigma": sigma})):
                with through_product(config, params, folder) as (output, _):
                    results[label] = {name.removesuffix(".png"): rgb for name, rgb in restored(output).items()}
        line: Line = {"sigma": sigma, "noisy dB": 0.0, "noisy SSIM": 0.0}
        for label, images in (("noisy", noisy), ("files blind", results["blind"]), ("files given", results["given"])):
            line[f"{label} dB"] = mean([psnr_db(images[n], p.rgb) for n, p in originals.items()])
            line[f"{label} SSIM"] = mean([ssim(images[n], p.rgb) for n, p in originals.items()])
        for label, level in (("blind", None), ("given", sigma)):
            line[f"float {label} dB"] = mean(
                [psnr_db(float_result(model, n, p, sigma, level), p.rgb) for n, p in originals.items()]
            )
        lines.append(line)
        rows += [
            [
                Tile(noisy[n], f"sigma {sigma:g}: {psnr_db(noisy[n], originals[n].rgb):.2f} dB"),
                Tile(results["blind"][n], f"{psnr_db(results['blind'][n], originals[n].rgb):.2f} dB"),
                Tile(originals[n].rgb, n),
            ]
            for n in spread(list(originals), 2)
        ]
    gray = sum(picture.is_gray for picture in originals.values())
    middle = lines[len(lines) // 2]
    return Evaluation(
        len(originals),
        {"PSNR and SSIM, means over the images": lines},
        [Measured(config.weights, f"{middle['files blind dB']:.2f} dB at sigma {middle['sigma']:g}, blind", lines)],
        draw_contact_sheet(["noisy", "denoised, blind", "original"], rows),
        [
            f"gray, with one plane of noise each: {gray} of {number(len(originals), 'image')}",
            "files: noise cut and rounded to 8 bits, through the product; float: neither, through the network alone",
        ],
    )


def grainy(name: str, picture: DecodedImage, sigma: float) -> np.ndarray:
    """(H,W,3) uint8: what a file keeps of an image and its noise."""
    noisy: np.ndarray = (picture.rgb + noise_for(name, picture, sigma)).clip(0, 255).round().astype(np.uint8)
    return noisy


def float_result(model: Any, name: str, picture: DecodedImage, sigma: float, level: float | None) -> np.ndarray:
    """(H,W,3) uint8 of one image under unclipped float noise of `sigma`, denoised at `level` or blind."""
    h, w = picture.rgb.shape[:2]
    noisy = (picture.rgb + noise_for(name, picture, sigma)) / np.float32(255)
    x = torch.from_numpy(pad_to_stride(noisy, model.stride)).permute(2, 0, 1)[None]
    with torch.inference_mode(), Precision().autocast():
        x_hat = to_uint8_images(model(x, None if level is None else torch.tensor([level / 255])))[0, :h, :w]
    # As the product writes a gray image.
    return np.asarray(Image.fromarray(x_hat).convert("L").convert("RGB")) if picture.is_gray else x_hat
