"""The figures of each epoch of a training: metrics.jsonl, and an event file for TensorBoard."""

import json
import tempfile
from pathlib import Path

from tensorboardX import SummaryWriter

from imagemill.jobs.training.states import EpochFigures
from imagemill.pipeline.storage import Store

METRICS = "metrics.jsonl"
# The file is written again after each epoch under the same name. TensorBoard continues at its last position, before which
# the bytes have not changed.
EVENTS = "tensorboard/events.out.tfevents.imagemill"


def write_metrics(run: Store, history: list[EpochFigures]) -> None:
    """Write metrics.jsonl and the event file completely: S3 cannot append, and a resumed training repeats no line."""
    run.write(METRICS, "".join(json.dumps(line) + "\n" for line in history).encode())
    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for line in history:
                for key, value in line.items():
                    if key not in ("epoch", "time"):
                        writer.add_scalar(key, value, line["epoch"], walltime=line["time"])
        (events,) = Path(folder).iterdir()
        run.write(EVENTS, events.read_bytes())
