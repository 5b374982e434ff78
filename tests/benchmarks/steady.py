"""Profile a run at its steady rate: python tests/benchmarks/steady.py [--images 12000] [--seconds 12]

Makes photos of 256 px and runs `imagemill compress` on them without figures of quality. When both actors are at work it
looks for some seconds at what each kind of process takes of the cores (/proc), and at what the threads of the actors do
(py-spy, 100 samples a second of what runs, not of what waits). It needs the right to look into processes: mostly root.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import photos
import typer
from process_tree import TICKS, processes
from rich.console import Console
from rich.table import Table

HZ = 100
WARM_SECONDS = 3.0
"""Seconds from the first row to the first sample."""
STAGES = {
    "_read": "fetch",
    "_decode": "decode",
    "_run": "model",
    "_result": "encode the latent",
    "_table": "rows to a table",
    "Sink.__call__": "commit: Parquet",
}
"""Functions of the product; the outermost one on a stack says what the thread does."""
ELSE = "the rest of the actor, and Ray in it"
WAITS = ("_worker", "wait", "main_loop")
"""Functions in which a thread waits for work although it seems to run."""
LINE = re.compile(r":\d+(?=\))")


def name_of(pid: int) -> str:
    """Return the kind of a process: the first word of its command, which Ray's workers set to their role."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").split()
    except OSError:
        return ""
    names = [Path(word).name for word in words if not word.startswith("-")]
    return next((name for name in names if not name.startswith("python")), "")


def kind_of(pid: int, driver: int) -> str:
    name = name_of(pid)
    if pid == driver:
        return "driver"
    if name.startswith("ray::") and "MapBatches(Worker)" in name:
        return "actors"
    return name if name in ("raylet", "gcs_server") else "other processes of Ray"


def family(root: int) -> set[int]:
    """Return a process and its descendants."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _, _) in processes().items():
        children.setdefault(parent, []).append(pid)
    found, waiting = set(), [root]
    while waiting:
        found.add(pid := waiting.pop())
        waiting += children.get(pid, [])
    return found


def stage_of(stack: str) -> str:
    """Return the activity of a stack of py-spy, outermost frame first."""
    for frame in stack.split(";"):
        function = frame.partition(" (")[0]
        if stage := STAGES.get(function) or STAGES.get(function.rpartition(".")[2]):
            return stage
    return ELSE


def main(
    images: Annotated[int, typer.Option(help="photos; they must last longer than the look")] = 12_000,
    seconds: Annotated[int, typer.Option(help="to look for")] = 12,
) -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory(prefix="imagemill-steady-") as place:
        root = Path(place)
        photos.make(root / "in", images, None, False, False, 0, os.cpu_count() or 1)
        command = [sys.executable, "-m", "imagemill", "compress", str(root / "in"), str(root / "out"), "--set", "quality=0"]
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        while not any(root.glob("out/results/**/*.parquet")):
            if run.poll() is not None:
                raise SystemExit(f"the run ended with {run.returncode} before a row was there")
            time.sleep(0.1)
        time.sleep(WARM_SECONDS)
        kinds = {pid: kind_of(pid, run.pid) for pid in family(run.pid)}
        before, began = processes(), time.monotonic()
        stacks = [root / f"{pid}.raw" for pid, kind in kinds.items() if kind == "actors"]
        look = [
            "py-spy",
            "record",
            "--rate",
            str(HZ),
            "--duration",
            str(seconds),
            "--format",
            "raw",
            "--function",
            "--nonblocking",
        ]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        lookers = [subprocess.Popen([*look, "--pid", path.stem, "--output", str(path)], **quiet) for path in stacks]
        for looker in lookers:
            looker.wait()
        after, took = processes(), time.monotonic() - began
        if run.poll() is not None:
            raise SystemExit("the run ended while it was looked at: --images more, or --seconds less")
        run.wait()
        record = json.loads(next(root.glob("out/runs/*/run.json")).read_text())
        cores: Counter[str] = Counter()
        for pid, kind in kinds.items():
            if pid in before and pid in after:
                cores[kind] += (after[pid][2] - before[pid][2]) / TICKS / took
        samples: Counter[str] = Counter()
        leaves: Counter[tuple[str, str]] = Counter()
        for path in stacks:
            for line in path.read_text().splitlines():
                stack, _, count = line.rpartition(" ")
                leaf = LINE.sub("", stack.rpartition(";")[2])
                if leaf.partition(" (")[0].rpartition(".")[2] in WAITS:
                    continue
                samples[stage_of(stack)] += int(count)
                leaves[stage_of(stack), leaf] += int(count)
    console = Console(width=110)
    console.print(f"{record['images_per_s']:g} images/s; looked at for {took:.0f} s\n")
    table = Table("process", "cores", title="of the machine")
    table.columns[1].justify = "right"
    for kind, share in cores.most_common():
        table.add_row(kind, f"{share:.2f}")
    console.print(table)
    table = Table("actors are at", "share", "most of it in", title="of what runs in the actors")
    table.columns[1].justify = "right"
    total = sum(samples.values())
    for stage, count in samples.most_common():
        most = [(leaf, n) for (at, leaf), n in leaves.most_common() if at == stage][:3]
        table.add_row(stage, f"{count / total:.1%}", ", ".join(f"{leaf} {n / count:.0%}" for leaf, n in most))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
