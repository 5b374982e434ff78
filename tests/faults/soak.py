"""Run nights for an hour over a folder that grows, changes and loses files; kill a third of them: `make soak`.

python -m tests.faults.soak [--minutes 60] [--engine local] [--out soak]

After each night, the script counts resources that must stay bounded: memory, open files and threads of the process that
runs the nights, parts, temporary files, and files of Ray. At the end, each file must have a row of its current bytes or a
reject, and `verify` must pass. The script writes soak.json (every night) and soak.md to `--out`, and exits with 1 if a
check fails.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from skimage import data

from imagemill.pipeline.cluster.connection import share_ray
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.disk import TEMPORARY
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.parts import NOTES_FOLDER, list_parts, read_parts
from imagemill.pipeline.output.snapshot import read_snapshot
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.run_processes import stop

SIDE = 96
AT_FIRST, NEW, CHANGED, LOST = 300, 40, 10, 10
"""Number of files at the start, and added, changed and removed each night."""
ROOM = {"parts": 80, "rss_mb": 200}
"""Allowed growth beyond 50 %: parts are merged when there are 64."""
BOUNDED = ("open_files", "threads", "temporary_files", "raylets", "fork_servers", "shared_memory", "rss_mb", "parts")
"""Resources whose number must not grow."""
KILLED = 1 / 3
"""Share of nights that are killed."""


class Folder:
    """A folder of images that changes."""

    def __init__(self, store: Store, generator: random.Random) -> None:
        self.store, self.random, self.number = store, generator, 0
        self.photos = [getattr(data, name)()[..., :3] for name in ("astronaut", "chelsea", "coffee", "rocket")]
        self.image_names: list[str] = []
        self.add(AT_FIRST)

    def picture(self) -> bytes:
        """Return a new crop as a file; some files are cut off."""
        photo = self.random.choice(self.photos)
        y, x = (self.random.randrange(side - SIDE) for side in photo.shape[:2])
        crop = np.roll(photo[y : y + SIDE, x : x + SIDE], self.random.randrange(256), axis=2)
        encoded = encode_rgb(crop, "PNG")
        return encoded[: len(encoded) // 2] if self.random.random() < 0.02 else encoded

    def add(self, count: int) -> None:
        for _ in range(count):
            name = f"{self.number % 17}/{self.number}.png"
            self.store.write(name, self.picture())
            self.image_names.append(name)
            self.number += 1

    def day(self) -> None:
        self.add(self.random.randrange(2 * NEW))
        for name in self.random.sample(self.image_names, CHANGED):
            self.store.write(name, self.picture())
        for name in self.random.sample(self.image_names, LOST):
            self.store.delete(name)
            self.image_names.remove(name)


def killed_night(source: Store, output: Store, generator: random.Random, engine: str) -> str:
    """Start a run and kill it at a random moment, unless it ends earlier."""
    command = [sys.executable, "-m", "imagemill", "compress", source.url, output.url, "--engine", engine]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(generator.uniform(1, 18))
        return f"exit {process.returncode}"
    except subprocess.TimeoutExpired:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return "killed"
    finally:
        stop(process)


def count_resources(output: Store) -> dict[str, int]:
    """Count the resources that must not grow with the number of nights."""
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    parts = [entry for folder in ("results", "rejects") for entry in output.entries(folder)]
    commands = [command_of(path) for path in Path("/proc").glob("[0-9]*/cmdline")]
    return {
        "rss_mb": int(status["VmRSS"].split()[0]) // 1000,
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "parts": len(parts),
        "temporary_files": sum(bool(TEMPORARY.fullmatch(name)) for _, _, names in os.walk(output.root) for name in names),
        "notes": len(output.names(NOTES_FOLDER)),
        "sessions_of_ray": len(list(Path("/tmp/ray").glob("session_2*"))),
        "raylets": sum(b"/raylet\0" in command for command in commands),
        "fork_servers": sum(b"fork_loop import serve" in command for command in commands),
        "shared_memory": len(os.listdir("/dev/shm")),
    }


def command_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def find_problems(folder: Folder, output: Store) -> list[str]:
    """Run a last time and return the problems of the output."""
    problems = list(verify(output).problems)
    newest = read_snapshot(output)
    rows = {
        path: digest
        for table in newest.tables(["rel_path", "content_sha256"])
        for path, digest in zip(*(table[name].to_pylist() for name in ("rel_path", "content_sha256")), strict=True)
    }
    rejects = read_parts(output, list_parts(output, "rejects"), ["rel_path", "source_etag"])
    reject_keys = set(zip(*(rejects[name].to_pylist() for name in ("rel_path", "source_etag")), strict=True))
    for name in folder.image_names:
        is_current = rows.get(name) == hashlib.sha256(folder.store.read(name)).hexdigest()
        if not is_current and (name, folder.store.entry(name).etag) not in reject_keys:
            problems.append(f"{name}: neither a row of these bytes nor a reject")
    return problems


def main(
    minutes: Annotated[float, typer.Option(min=0.1)] = 60.0,
    seed: Annotated[int, typer.Option(help="of what happens when")] = 0,
    engine: Annotated[str, typer.Option(help="local or ray")] = "local",
    out: Annotated[Path, typer.Option(help="where the figures go")] = Path("soak"),
) -> None:
    """Run nights until the time is over."""
    start_s, generator = time.monotonic(), random.Random(seed)
    nights: list[dict[str, Any]] = []
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="imagemill-soak-") as place:
        source, output = Store(f"{place}/in"), Store(f"{place}/out")
        folder = Folder(source, generator)
        config = RunConfig(task="compress", input=source.url, output=output.url, engine=engine)
        with share_ray():
            while not nights or time.monotonic() - start_s < 60 * minutes:
                if nights:
                    folder.day()
                killed = bool(nights) and generator.random() < KILLED
                outcome = killed_night(source, output, generator, engine) if killed else f"exit {run(config)['exit_code']}"
                nights.append(
                    {"minute": round((time.monotonic() - start_s) / 60, 1), "ended": outcome, **count_resources(output)}
                )
                typer.echo(json.dumps(nights[-1]))
                (out / "soak.json").write_text(json.dumps(nights, indent=1))
            run(config)
        problems = find_problems(folder, output) + find_growth(nights)
        images = len(folder.image_names)
    (out / "soak.md").write_text(report(nights, images, problems))
    typer.echo((out / "soak.md").read_text())
    if problems:
        raise typer.Exit(1)


def find_growth(nights: list[dict[str, Any]]) -> list[str]:
    """Return the counts that grew, and runs that neither succeeded nor were killed."""
    problems = [f"a night ended with {night['ended']}" for night in nights if night["ended"] not in ("exit 0", "killed")]
    first, last = (nights[: len(nights) // 3], nights[-(len(nights) // 3) :]) if len(nights) > 5 else ([], [])
    for name in (
        ("open_files", "threads", "temporary_files", "raylets", "fork_servers", "shared_memory", "rss_mb", "parts")
        if first
        else ()
    ):
        early_max, late_max = (max(night[name] for night in group) for group in (first, last))
        if late_max > 1.5 * early_max + ROOM.get(name, 4):
            problems.append(f"{name}: at most {early_max} in the first third of the nights, {late_max} in the last")
    return problems


def report(nights: list[dict[str, Any]], images: int, problems: list[str]) -> str:
    """Return a Markdown page with the counts in the first and the last third of the nights."""
    third = max(1, len(nights) // 3)
    ends = ", ".join(f"{count} × {end}" for end, count in Counter(night["ended"] for night in nights).most_common())
    lines = [f"{len(nights)} nights in {nights[-1]['minute']:.0f} minutes ({ends}); {images:,} images in the end.", ""]
    lines += ["| after a night, the most | first third | last third |", "|---|---|---|"]
    for name in (key for key in nights[0] if key not in ("minute", "ended")):
        first, last = (max(night[name] for night in group) for group in (nights[:third], nights[-third:]))
        lines.append(f"| {name.replace('_', ' ')} | {first:,} | {last:,} |")
    verdict = "; ".join(problems[:5]) if problems else "every image has a row of its very bytes or a reject, `verify` holds"
    return "\n".join([*lines, "", f"In the end: {verdict}."]) + "\n"


if __name__ == "__main__":
    typer.run(main)
