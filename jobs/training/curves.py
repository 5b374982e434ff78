"""curves.png: figures over the epochs of a training, and previews of the result."""

import io
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from imagemill.jobs.training.states import EpochFigures
from imagemill.models.autoencoder import Network
from imagemill.models.batches import to_float_batch, to_uint8_images
from imagemill.models.objectives.objective import Objective

CURVES = "curves.png"
PREVIEWS = 4


def make_previews(objective: Objective, model: Network, crops: list[np.ndarray]) -> list[list[tuple[str, Any]]]:
    """Return a row (title, image uint8) of input, output and original for each of the first crops (h,w,3) uint8."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for crop in crops[:PREVIEWS]:
        x = to_float_batch([crop], model.output_stride, "cpu")
        with torch.inference_mode():
            damaged, output = objective.preview(model, x, generator)
        rows.append([("input", to_uint8_images(damaged)[0]), ("output", to_uint8_images(output)[0]), ("original", crop)])
    return rows


def draw_curves(history: list[EpochFigures], rows: list[list[tuple[str, Any]]], title: str) -> bytes:
    """Draw loss, PSNR and learning rate over the epochs, and below them the rows of previews; return a PNG."""
    heights = [3.4] + [2.6] * len(rows)
    figure = Figure(figsize=(12, sum(heights)), dpi=100, layout="constrained")
    figure.suptitle(title)
    top, *below = figure.subplots(len(heights), 3, squeeze=False, height_ratios=heights)
    groups = [["train_loss", "valid_loss"], ["train_psnr_db", "valid_psnr_db"], ["learning_rate"]]
    for axes, keys in zip(top, groups, strict=True):
        plot_figures(axes, history, [key for key in keys if key in history[0]])
    for places, row in zip(below, rows, strict=True):
        for axes, (name, image) in zip(places, row, strict=True):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
            axes.set_title(name, fontsize=9)
            axes.axis("off")
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def plot_figures(axes: Axes, history: list[EpochFigures], keys: list[str]) -> None:
    """Plot figures over the epochs."""
    marker = "." if len(history) < 30 else ""
    for key in keys:
        points = [line["epoch"] for line in history], [line[key] for line in history]
        axes.plot(*points, marker=marker, label=key.replace("_", " "))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
