"""Evaluate `compress` at several quantiser steps: bits on disk and distortion, compared with JPEG and WebP."""

import io
from contextlib import redirect_stdout

import numpy as np
from bjontegaard import bd_rate
from matplotlib.figure import Figure
from PIL import Image

from imagemill.jobs.console import number
from imagemill.jobs.decode import decode_output
from imagemill.jobs.evaluations.evaluation import (
    EvaluateConfig,
    Evaluation,
    Measured,
    TableRow,
    check_config,
    mean,
    read_images,
    run_pipeline,
    temporary_folder,
)
from imagemill.jobs.outputs import read_newest_rows
from imagemill.models.metrics import MS_SSIM_SIDE, ms_ssim, psnr_db, ssim
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.output.output_names import decoded_name
from imagemill.pipeline.storage import Store

STEPS = [18.0, 26.0, 40.0, 64.0]
QUALITIES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95)
CODECS = {
    "JPEG 4:2:0": {"format": "JPEG", "subsampling": 2, "optimize": True},
    "JPEG 4:4:4": {"format": "JPEG", "subsampling": 0, "optimize": True},
    "WebP": {"format": "WEBP", "method": 6},
}
"""Arguments of Pillow's writer in addition to a quality of QUALITIES."""
METRICS = ("PSNR dB", "MS-SSIM")
ALL_BYTES, PAYLOAD = "bits/pixel", "payload bits/pixel"
LEAST_POINTS = 4
"""Number of points that a curve needs for a BD-rate (Bjøntegaard 2001)."""


def evaluate_compress(config: EvaluateConfig) -> Evaluation:
    """Measure rate and distortion at each step and of other codecs, and the BD-rates between them.

    "bits/pixel" counts all bytes of the Parquet files in `results/`, and "payload" the compressed latents alone. For other
    codecs, whole files are counted. Images are decoded from OUTPUT like in `imagemill decode`.
    """
    check_config(config, "step")
    originals = {name: picture.rgb for name, picture in read_images(str(config.input), config.storage).items()}
    large = [name for name, rgb in originals.items() if min(rgb.shape[:2]) >= MS_SSIM_SIDE]
    pixels = sum(rgb.shape[0] * rgb.shape[1] for rgb in originals.values())
    ours: list[TableRow] = []
    for step in sorted(config.at or STEPS):
        with run_pipeline(config, {"step": step}, str(config.input)) as (output, record):
            rows, decoded = read_newest_rows(output, ["bits_per_pixel", "orig_width", "orig_height"]), decode_images(output)
        payload = sum(row["bits_per_pixel"] * row["orig_width"] * row["orig_height"] for row in rows.values())
        ours.append(
            {
                "step": step,
                ALL_BYTES: record["quality"]["bits_per_pixel_on_disk"],
                PAYLOAD: payload / pixels,
                **measure_distortion(originals, decoded, large),
                "SSIM": mean([ssim(decoded[name], rgb) for name, rgb in originals.items()]),
            }
        )
    others = {name: measure_codec(originals, options, large) for name, options in CODECS.items()}
    bd_lines = build_bd_table(ours, others) if len(ours) >= LEAST_POINTS else []
    middle = ours[len(ours) // 2]
    headline = f"{middle['PSNR dB']:.2f} dB at {middle[ALL_BYTES]:.3f} bits/pixel"
    if bd_lines and bd_lines[0]["all bytes %"] is not None:
        headline = f"BD-rate {bd_lines[0]['all bytes %']:+.1f} % against {bd_lines[0]['against']}"
    notes = [
        f"MS-SSIM: on {len(large)} of {number(len(originals), 'image')}, with sides of {MS_SSIM_SIDE} pixels or more",
        "bits/pixel: all bytes of the Parquet files; payload: the latents alone; JPEG, WebP: whole files, by Pillow",
    ]
    if not bd_lines:
        notes.append(f"no BD-rate, which needs at least {LEAST_POINTS} steps")
    for line in ours:
        line |= {f"{name} dB": psnr_at_rate(line[ALL_BYTES], curve) for name, curve in others.items()}
    notes.append("JPEG dB, WebP dB: their PSNR at the same bits/pixel, interpolated between qualities")
    tables = {"rate and distortion": ours}
    if bd_lines:
        tables["BD-rate: bits saved (negative) at the same distortion, %"] = bd_lines
    lines = [*ours, *bd_lines]
    return Evaluation(
        len(originals),
        tables,
        [Measured(config.weights, headline, lines)],
        plot_curves(ours, others, config.set_name),
        notes,
        {"other codecs": [{"codec": name, **line} for name, curve in others.items() for line in curve]},
    )


def decode_images(output: Store) -> dict[str, np.ndarray]:
    """Decode the images (H,W,3) uint8 of OUTPUT, by the source's relative path."""
    with temporary_folder() as folder:
        # The output of `imagemill decode` would name this temporary folder.
        with redirect_stdout(io.StringIO()):
            decode_output(output, Store(folder))
        return {name: decode_image(Store(folder).read(decoded_name(name))).rgb for name in read_newest_rows(output, [])}


def measure_distortion(originals: dict[str, np.ndarray], decoded: dict[str, np.ndarray], large: list[str]) -> TableRow:
    """Return the mean PSNR, and the mean MS-SSIM of the images that are large enough."""
    line: TableRow = {"PSNR dB": mean([psnr_db(decoded[name], rgb) for name, rgb in originals.items()])}
    if large:
        line["MS-SSIM"] = mean([ms_ssim(decoded[name], originals[name]) for name in large])
    return line


def measure_codec(originals: dict[str, np.ndarray], options: TableRow, large: list[str]) -> list[TableRow]:
    """Measure rate and distortion of one of Pillow's codecs at each quality."""
    pixels = sum(rgb.shape[0] * rgb.shape[1] for rgb in originals.values())
    curve = []
    for quality in QUALITIES:
        files = {}
        for name, rgb in originals.items():
            file = io.BytesIO()
            Image.fromarray(rgb).save(file, quality=quality, **options)
            files[name] = file.getvalue()
        decoded = {name: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for name, data in files.items()}
        bits = 8 * sum(len(data) for data in files.values())
        curve.append({"quality": quality, ALL_BYTES: bits / pixels, **measure_distortion(originals, decoded, large)})
    return curve


def psnr_at_rate(rate: float, curve: list[TableRow]) -> float | None:
    """Interpolate the PSNR of a codec at a rate in bits/pixel; None outside its curve."""
    rates, qualities = keep_rising(curve_points(curve, ALL_BYTES, "PSNR dB"))
    return float(np.interp(rate, rates, qualities)) if rates and rates[0] <= rate <= rates[-1] else None


def build_bd_table(ours: list[TableRow], others: dict[str, list[TableRow]]) -> list[TableRow]:
    """Compute the BD-rates of our curve against each codec; the better subsampling of JPEG comes first."""
    table = []
    for metric in METRICS:
        if metric not in ours[0]:
            continue
        lines: list[TableRow] = [
            {
                "metric": metric,
                "against": name,
                "all bytes %": bd_rate_percent(
                    curve_points(curve, ALL_BYTES, metric), curve_points(ours, ALL_BYTES, metric)
                ),
                "payload %": bd_rate_percent(curve_points(curve, ALL_BYTES, metric), curve_points(ours, PAYLOAD, metric)),
            }
            for name, curve in others.items()
        ]
        jpeg = [line for line in lines if line["against"].startswith("JPEG")]
        best = max(jpeg, key=lambda line: float("-inf") if line["all bytes %"] is None else line["all bytes %"])
        table += [best | {"against": f"{best['against']}, the better"}, *(line for line in lines if line is not best)]
    return table


def curve_points(curve: list[TableRow], rate: str, metric: str) -> list[tuple[float, float]]:
    """Return (bits/pixel, quality) of a curve; MS-SSIM in dB, -10·log10(1 - x), because its values are close to 1."""
    return [(line[rate], -10 * np.log10(1 - line[metric]) if metric == "MS-SSIM" else line[metric]) for line in curve]


def bd_rate_percent(anchor: list[tuple[float, float]], curve: list[tuple[float, float]]) -> float | None:
    """Return the mean difference in rate at equal quality, in %; negative values are fewer bits than the anchor.

    Args:
        anchor: (rate, quality) of the reference, at least four points.
        curve: (rate, quality) of the compared codec, at least four points.

    Returns:
        None when the curves share no range of quality, or one has fewer than two usable points.
    """
    # A codec may lose quality with more bits at the end of its scale, but the interpolation needs rising curves.
    (rate_0, quality_0), (rate_1, quality_1) = (keep_rising(c) for c in (anchor, curve))
    if min(len(rate_0), len(rate_1)) < 2 or min(quality_0[-1], quality_1[-1]) <= max(quality_0[0], quality_1[0]):
        return None
    return float(bd_rate(rate_0, quality_0, rate_1, quality_1, "pchip", require_matching_points=False, min_overlap=0))


def keep_rising(curve: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Return rates and qualities of the points that are better than all cheaper ones, without infinite qualities."""
    best: list[tuple[float, float]] = []
    for rate, quality in sorted(point for point in curve if np.isfinite(point[1])):
        if not best or quality > best[-1][1]:
            best.append((rate, quality))
    return [rate for rate, _ in best], [quality for _, quality in best]


def plot_curves(ours: list[TableRow], others: dict[str, list[TableRow]], name: str) -> bytes:
    """Draw the rate-distortion curves as PNG."""
    metrics = [metric for metric in METRICS if metric in ours[0]]
    figure = Figure(figsize=(6 * len(metrics), 4.5), layout="constrained")
    most = 1.25 * max(line[ALL_BYTES] for line in ours)
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        curves = [("imagemill, all bytes", ALL_BYTES, ours, "o-"), ("imagemill, payload", PAYLOAD, ours, "o--")]
        curves += [(codec, ALL_BYTES, lines, ".-") for codec, lines in others.items()]
        for label, rate, curve, style in curves:
            # Up to 1.25 times our highest rate; JPEG's quality 95 would compress the rest of the plot.
            shown = [pair for pair in curve_points(curve, rate, metric) if pair[0] <= most]
            axes.plot(*zip(*shown, strict=True), style, label=label) if shown else None
        axes.set(xlabel="bits per pixel", ylabel="MS-SSIM, dB" if metric == "MS-SSIM" else metric, title=name)
        axes.grid(alpha=0.3)
        axes.legend()
    out = io.BytesIO()
    figure.savefig(out, dpi=110)
    return out.getvalue()
