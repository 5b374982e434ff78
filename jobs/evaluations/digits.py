"""Evaluate autoencoders of small gray images of one size: compared with PCA, and for patterns of their decoders."""

import io

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from imagemill.jobs.evaluations.compress import decode_images
from imagemill.jobs.evaluations.evaluation import (
    EvaluateConfig,
    Evaluation,
    Measured,
    TableRow,
    check_config,
    mean,
    pick_evenly,
    read_images,
    run_pipeline,
)
from imagemill.jobs.outputs import read_newest_rows
from imagemill.models import checkpoint as checkpoints
from imagemill.models.autoencoder import LatentCoder
from imagemill.models.metrics import checkerboard, psnr_db
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.resolve import ResolvedRun

SHOWN, SHOWN_FLAT, AMPLIFIED = 12, 4, 4
FLAT_CODES = 1000
LEVELS = 255
"""Number of steps of an 8-bit code, as in the architecture `conv`."""
MARGIN = 2
"""Distance from the border, in positions of the code, from which the padding has no influence."""


def evaluate_digits(config: EvaluateConfig) -> Evaluation:
    """Measure the squared errors of checkpoints, of PCA with as many values, and of the smallest PCA that is as good.

    "MSE" is measured on values in [0,1] without rounding. "stored" is measured after a run and `decode`, with 8-bit codes
    and 8-bit images, and so is the PSNR. For PCA, codes are divided into 255 steps between their extremes on the training
    images.

    Two figures measure the pattern that strides leave (Odena et al. 2016). "checkerboard" is the metric of
    `models/metrics.py` of the errors, in multiples of the value of white noise. "ripple" is the variation in images that are
    decoded from constant codes (one position of a digit's code, repeated), which only the decoder can cause. It is not
    measured for digits of up to four strides, because every pixel is too close to the border.
    """
    configs = [config.model_copy(update={"checkpoint": name}) for name in (config.weights, *config.against)]
    models = [build_gray_coder(check_config(c, None, ("step",))) for c in configs]
    originals, fitted = read_gray_images(config, str(config.input)), read_gray_images(config, str(config.fit))
    names, x, train = list(originals), np.stack(list(originals.values())), np.stack(list(fitted.values()))
    if x.shape[1:] != train.shape[1:]:
        raise ConfigError(
            f"fit = {config.fit}: its images are {train.shape[1:]} pixels high and wide, the input's {x.shape[1:]}"
        )
    for c, model in zip(configs, models, strict=True):
        if any(side % model.stride for side in x.shape[1:]):
            raise ConfigError(
                f"input {config.input}: its images are {x.shape[1:]} pixels high and wide; "
                f"checkpoint {c.weights} takes multiples of {model.stride}"
            )
    period = models[0].stride
    lines: list[TableRow] = []
    restored: dict[str, np.ndarray] = {}
    flat: dict[str, np.ndarray] = {}
    for c, model in zip(configs, models, strict=True):
        with torch.inference_mode():
            code = model.encode(torch.from_numpy(x)[:, None])
            restored[c.weights] = model.decode(code)[:, 0].numpy()
            if min(x.shape[1:]) > 2 * MARGIN * model.stride:
                flat[c.weights] = decode_flat(model, code)
        with run_pipeline(c, {}, str(c.input)) as (output, _):
            rows, images = read_newest_rows(output, ["bits_per_pixel"]), decode_images(output)
        stored = np.stack([images[name][..., 0] for name in names])
        parameters = sum(p.numel() for p in model.parameters())
        line = {"coder": c.weights, "parameters": parameters, "values": code[0].numel()}
        line |= measure_errors(x, restored[c.weights], stored, period)
        if c.weights in flat:
            line["ripple"] = measure_ripple(flat[c.weights])
        lines.append(line | {"bits/pixel": mean([row["bits_per_pixel"] for row in rows.values()])})
    pca = PCA(train)
    counts = [lines[0]["values"], *(pca.values_for(x, line["MSE"]) for line in lines)]
    for values in dict.fromkeys(counts):
        name = f"PCA, {values} values"
        restored[name] = pca.restore(x, values)
        stored = (pca.restore(x, values, quantised=True).clip(0, 1) * 255).round().astype(np.uint8)
        line = {"coder": name, "parameters": (values + 1) * x[0].size, "values": values}
        lines.append(line | measure_errors(x, restored[name], stored, period))
    shown = [config.weights, *config.against, f"PCA, {counts[0]} values"]
    return Evaluation(
        len(x),
        {"errors, means over the images": lines},
        [
            Measured(c.weights, f"MSE {line['MSE']:.5f}", [line])
            for c, line in zip(configs, lines[: len(configs)], strict=True)
        ],
        draw_figure(
            x, {name: restored[name] for name in shown}, flat, [names.index(n) for n in pick_evenly(names, SHOWN)], period
        ),
        [
            f"PCA: fitted on {len(train)} images of {config.fit}, with as many values, and with the fewest that are as good",
            "stored: 8-bit codes and 8-bit images after a run and decode; bits/pixel: the compressed codes alone",
            f"checkerboard: power of the error at the period of {period} pixels, in multiples of that of white noise",
            f"ripple: rms variation, in 8-bit levels, of images decoded from {FLAT_CODES} constant codes",
        ],
    )


def build_gray_coder(job: ResolvedRun) -> LatentCoder:
    """Build the model of a checkpoint.

    Raises:
        ConfigError: when it does not encode gray images.
    """
    model = checkpoints.build(job.card, job.weights)
    if not isinstance(model, LatentCoder) or model.channels != 1:
        raise ConfigError(f"checkpoint {job.card.name}: must encode gray images. Choose one of the architecture conv")
    return model


def read_gray_images(config: EvaluateConfig, url: str) -> dict[str, np.ndarray]:
    """Read images (H,W) float32 in [0,1], by relative path.

    Raises:
        ConfigError: when sizes differ or an image has colours.
    """
    pictures = read_images(url, config.storage)
    if len({picture.rgb.shape for picture in pictures.values()}) > 1 or not all(p.is_gray for p in pictures.values()):
        raise ConfigError(f"{url}: must contain only gray images of one size")
    return {name: picture.rgb[..., 0].astype(np.float32) / 255 for name, picture in pictures.items()}


def measure_errors(x: np.ndarray, x_hat: np.ndarray, stored: np.ndarray, period: int) -> TableRow:
    """Return the errors of one autoencoder.

    Args:
        x: images (B,H,W) float in [0,1].
        x_hat: the reconstructions without rounding.
        stored: the reconstructions (B,H,W) uint8 from rounded codes.
        period: of the checkerboard metric, in pixels.
    """
    original = (x * 255).round().astype(np.uint8)
    _, h, w = x.shape
    white = (period**2 - 1) / (h * w - 1)
    return {
        "MSE": float(np.square(x_hat - x).mean()),
        "stored MSE": float(np.square(stored / 255 - x).mean()),
        "stored PSNR dB": mean([psnr_db(a, b) for a, b in zip(stored, original, strict=True)]),
        "checkerboard": checkerboard(x_hat - x, period) / white,
    }


def decode_flat(model: LatentCoder, code_BCHW: torch.Tensor) -> np.ndarray:
    """Decode constant codes, each a position of the given codes repeated; return images (N,H,W) without their borders."""
    places = code_BCHW.movedim(1, 3).flatten(0, 2)
    # Only positions inside digits: the black background would always stay black.
    places = places[places.amax(1) > 0]
    chosen = places[torch.linspace(0, len(places) - 1, min(FLAT_CODES, len(places))).long()]
    images = model.decode(chosen[:, :, None, None].expand(-1, -1, *code_BCHW.shape[2:]))[:, 0].numpy()
    margin = MARGIN * model.stride
    inner: np.ndarray = images[:, margin:-margin, margin:-margin]
    return inner


def measure_ripple(flat_BHW: np.ndarray) -> float:
    """Return the RMS difference of images from their own means, in 8-bit levels."""
    return float(255 * np.sqrt(flat_BHW.var((1, 2)).mean()))


class PCA:
    """Principal component analysis of images (B,H,W); components with the largest variance come first."""

    def __init__(self, images: np.ndarray) -> None:
        flat = images.reshape(len(images), -1).astype(np.float64)
        self.mean = flat.mean(0)
        centred = flat - self.mean
        self.basis = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
        codes = centred @ self.basis
        self.low, self.high = codes.min(0), codes.max(0)

    def restore(self, x: np.ndarray, values: int, quantised: bool = False) -> np.ndarray:
        """Reconstruct images (B,H,W) from their first `values` components, rounded to 8 bits if `quantised`."""
        basis, low, high = self.basis[:, :values], self.low[:values], self.high[:values]
        codes = (x.reshape(len(x), -1) - self.mean) @ basis
        if quantised:
            steps = ((codes - low) / (high - low) * LEVELS).clip(0, LEVELS).round()
            codes = low + steps / LEVELS * (high - low)
        restored: np.ndarray = (codes @ basis.T + self.mean).reshape(x.shape)
        return restored

    def values_for(self, x: np.ndarray, mse: float) -> int:
        """Return the smallest number of components with at most the given mean squared error on images (B,H,W)."""
        centred = x.reshape(len(x), -1) - self.mean
        # The basis is orthonormal, so each component reduces the error by its own power.
        errors = np.square(centred).mean() - np.cumsum(np.square(centred @ self.basis).mean(0)) / x[0].size
        return int(np.argmax(errors <= mse)) + 1


def draw_figure(
    x: np.ndarray, restored: dict[str, np.ndarray], flat: dict[str, np.ndarray], shown: list[int], period: int
) -> bytes:
    """Draw a row for each autoencoder: digits, errors, spectrum of the errors, and images of constant codes; return a PNG.

    Rings mark the frequencies of the checkerboard metric.

    Args:
        x: images (B,H,W).
        restored: reconstructions by name.
        flat: images of constant codes by name.
        shown: indices of the digits to show.
        period: of the checkerboard metric, in pixels.
    """
    figure = Figure(figsize=(17, 1.2 * (1 + len(restored))), layout="constrained")
    grid = figure.subplots(1 + len(restored), 4, squeeze=False, width_ratios=[SHOWN, SHOWN, 2, 4])
    spectra = {name: compute_spectrum(x_hat - x) for name, x_hat in restored.items()}
    top = max(np.log10(s).max() for s in spectra.values())
    for axes in grid.flat:
        axes.set_axis_off()
    h, w = x.shape[1:]
    rings = [(v, u) for v in range(0, h, h // period) for u in range(0, w, w // period) if (v, u) != (h // 2, w // 2)]
    show_images(grid[0][0], x[shown], "original", 0, 1, "gray")
    for row, (name, x_hat) in zip(grid[1:], restored.items(), strict=True):
        show_images(row[0], x_hat[shown], name, 0, 1, "gray")
        show_images(row[1], (x_hat - x)[shown], f"error, ±{1 / AMPLIFIED:g}", -1 / AMPLIFIED, 1 / AMPLIFIED, "coolwarm")
        show_images(row[2], np.log10(spectra[name])[None], "its spectrum", top - 3, top, "magma")
        row[2].scatter([u for _, u in rings], [v for v, _ in rings], 20, "none", edgecolors="cyan", linewidths=0.7)
        if name in flat:
            loudest = flat[name][np.argsort(-flat[name].var((1, 2)))[:SHOWN_FLAT]]
            show_images(row[3], loudest, "the loudest flat codes", 0, 1, "gray")
    out = io.BytesIO()
    figure.savefig(out, dpi=100)
    return out.getvalue()


def show_images(axes: Axes, images: np.ndarray, title: str, low: float, high: float, colours: str) -> None:
    """Show images (B,H,W) side by side."""
    axes.imshow(np.hstack(list(images)), colours, vmin=low, vmax=high)
    axes.set_title(title, loc="left")


def compute_spectrum(error_BHW: np.ndarray) -> np.ndarray:
    """Return the mean power spectrum (H,W) of errors, with frequency 0 in the centre."""
    power: np.ndarray = np.fft.fftshift(np.square(np.abs(np.fft.fft2(error_BHW))).mean(0))
    return power + 1e-12
