"""What a training shows of itself: metrics.jsonl, TensorBoard event files, and curves.png with sample reconstructions."""

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tensorboardX import SummaryWriter
from torch import Tensor

from jobs.training.states import Line
from models.autoencoder import Autoencoder
from models.tasks.task import Task, to_uint8
from pipeline.storage import Store

METRICS = "metrics.jsonl"
# One name for good: the file is written anew after each epoch, and TensorBoard, which reads on from where it was, finds the
# same bytes before it.
EVENTS = "tensorboard/events.out.tfevents.imagemill"
CURVES = "curves.png"
SAMPLES = 4


def write_metrics(run: Store, history: list[Line]) -> None:
    """metrics.jsonl and the event file, both whole: S3 cannot append, and a resumed run doubles nothing this way."""
    run.write(METRICS, "".join(json.dumps(line) + "\n" for line in history).encode())
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for line in history:
                for key, value in line.items():
                    if key not in ("epoch", "time"):
                        writer.add_scalar(key, value, line["epoch"], walltime=line["time"])
        (written,) = Path(folder).iterdir()
        run.write(EVENTS, written.read_bytes())


def samples_of(task: Task, model: Autoencoder, crops: list[Tensor]) -> list[list[tuple[str, Any]]]:
    """For the first crops (1,3,h,w) uint8: (title, image uint8) of what the model saw, what it made, and the original."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for crop in crops[:SAMPLES]:
        x = crop.float() / 255
        with torch.inference_mode():
            seen, output = task.sample(model, x, generator)
        rows.append([("input", to_uint8(seen)[0]), ("output", to_uint8(output)[0]), ("original", to_uint8(x)[0])])
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
    epochs = [line["epoch"] for line in history]
    for key in keys:
        axes.plot(
            epochs, [line[key] for line in history], marker="." if len(history) < 30 else "", label=key.replace("_", " ")
        )
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
