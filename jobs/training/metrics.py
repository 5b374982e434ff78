"""The figures of a training, epoch by epoch: metrics.jsonl, and an event file for TensorBoard."""

import json
import tempfile
from pathlib import Path

from tensorboardX import SummaryWriter

from imagemill.jobs.training.states import Line
from imagemill.pipeline.storage import Store

METRICS = "metrics.jsonl"
# One name for good: the file is written anew after each epoch, and TensorBoard, which reads on from where it was, finds the
# same bytes before it.
EVENTS = "tensorboard/events.out.tfevents.imagemill"


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
