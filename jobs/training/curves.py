"""The picture of a training: curves over epochs, and sample reconstructions."""

import io
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imagemill.jobs.training.states import Line
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.batches import to_float_batch, to_uint8_images
from imagemill.models.objectives.objective import Objective

CURVES = "curves.png"
SAMPLES = 4


def samples_of(objective: Objective, model: Autoencoder, crops: list[np.ndarray]) -> list[list[tuple[str, Any]]]:
    """For the first crops (h,w,3) uint8: (title, image uint8) of what the model saw, what it made, and the original."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for crop in crops[:SAMPLES]:
        x = to_float_batch([crop], model.output_stride, "cpu")
        with torch.inference_mode():
            seen, output = objective.preview(model, x, generator)
        rows.append([("input", to_uint8_images(seen)[0]), ("output", to_uint8_images(output)[0]), ("original", crop)])
    return rows


def draw_curves(history: list[Line], rows: list[list[tuple[str, Any]]], title: str) -> bytes:
    """A PNG: loss, validation PSNR and learning rate over epochs, and below them the samples."""
    heights = [3.4] + [2.6] * len(rows)
    figure = Figure(figsize=(12, sum(heights)), dpi=100, layout="constrained")
    figure.suptitle(title)
    top, *below = figure.subplots(len(heights), 3, squeeze=False, height_ratios=heights)
    groups = [["train_loss", "valid_loss"], ["train_psnr_db", "valid_psnr_db"], ["learning_rate"]]
    for axes, keys in zip(top, groups, strict=True):
        plot(axes, history, [key for key in keys if key in history[0]])
    for places, row in zip(below, rows, strict=True):
        for axes, (name, image) in zip(places, row, strict=True):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            axes.set_title(name, fontsize=9)
            axes.axis("off")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def plot(axes: Axes, history: list[Line], keys: list[str]) -> None:
    marker = "." if len(history) < 30 else ""
    for key in keys:
        points = [line["epoch"] for line in history], [line[key] for line in history]
        axes.plot(*points, marker=marker, label=key.replace("_", " "))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
