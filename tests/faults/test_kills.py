"""Kill each kind of process of a run over S3 at random: no image is lost, duplicated or wrong."""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from imagemill.pipeline.output.verify import verify
from tests.support.engines import ENGINES
from tests.support.run_processes import (
    fork_servers_of,
    made_without_faults,
    make_photos,
    outputs,
    raylets_of,
    start,
    stop,
    workers_of,
)
from tests.support.servers import S3, Server

KILLS = {
    "local": {"worker": 10, "fork server": 8, "driver": 8, "front": 12, "server": 12},
    "ray": {"worker": 10, "driver": 8, "front": 12, "raylet": 8, "server": 12},
}
"""Number of kills of each kind of process."""
PHOTOS = 400
FIND: dict[str, Callable[[subprocess.Popen[bytes], str], list[int]]] = {
    "worker": workers_of,
    "fork server": lambda run, engine: fork_servers_of(run),
    "driver": lambda run, engine: [run.pid],
    "front": lambda run, engine: [run.pid],
    "raylet": lambda run, engine: raylets_of(run),
    "server": lambda run, engine: [run.pid],
}
"""Find the processes of a kind in a run; servers can be killed at any moment."""
ENDS = ("driver", "raylet")
PATIENCE_S = 900.0
"""Seconds after which a run without progress counts as hung, far more than a busy machine needs."""
ALONE = "pool.batch_size=1"
"""One image per batch rounds the same after a process died, when each image is processed alone."""


def sessions(kills: dict[str, int], generator: random.Random) -> Iterator[list[str]]:
    """Return the kinds of processes to kill, one list per run; only the last kill of a list ends its run."""
    passing, ends = (
        [kind for kind, count in kills.items() for _ in range(count) if (kind in ENDS) == last] for last in (False, True)
    )
    generator.shuffle(passing)
    generator.shuffle(ends)
    for number, end in enumerate(ends):
        yield [*passing[number :: len(ends)], end]


class Chaos:
    def __init__(self, engine: str, s3: S3, written: Path, crops: list[np.ndarray]) -> None:
        self.engine, self.s3, self.written, self.crops = engine, s3, written, crops
        self.source, self.output = s3.store("in"), s3.store("out")
        self.random = random.Random(0)
        self.killed: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.photos = 0
        self.run: subprocess.Popen[bytes] | None = None
        self.add_images()

    def add_images(self) -> None:
        """Add images, so that no run ends before all kills happened."""
        make_photos(self.source, PHOTOS, self.crops, first=self.photos)
        self.photos += PHOTOS

    def live_run(self) -> "subprocess.Popen[bytes]":
        """Return the current run; restart it if it has ended."""
        if self.run is not None and (code := self.run.poll()) is not None:
            log = (self.run.stderr.read() if self.run.stderr else b"").decode()
            assert code in (0, 1, 5, -signal.SIGKILL), f"exit {code}: {log}"
            assert "Traceback" not in log
            self.ends[f"exit {code}"] += 1
            self.run = None
            if code == 0:
                self.add_images()
        if self.run is None:
            self.run = start(self.source, self.output, ALONE, engine=self.engine)
        return self.run

    def count_images(self) -> int:
        return sum(path.is_file() for path in (self.written / "images").rglob("*.png"))

    def wait_for_moment(self, victim: str) -> "tuple[subprocess.Popen[bytes], list[int]]":
        """Wait for a random number of processed images; return the run and its live processes of a kind."""
        goal, start_s = self.count_images() + self.random.choice((0, 0, 1, 5, 20, 40)), time.monotonic()
        while True:
            run = self.live_run()
            pids = FIND[victim](run, self.engine)
            if self.count_images() >= goal and pids and run.poll() is None:
                return run, pids
            assert time.monotonic() - start_s < PATIENCE_S, f"no image for {PATIENCE_S} s after {dict(self.killed)}"
            time.sleep(0.05)

    def kill(self, victim: str) -> None:
        run, pids = self.wait_for_moment(victim)
        if victim in ("server", "front"):
            self.restart(self.s3.behind if victim == "server" else self.s3.front)
        else:
            os.kill(self.random.choice(pids), signal.SIGKILL)
        self.killed[victim] += 1
        if victim in ENDS:
            assert run.wait(PATIENCE_S) != 0

    def restart(self, server: Server) -> None:
        server.kill()
        time.sleep(self.random.random())
        server.start()


@pytest.mark.chaos
@pytest.mark.parametrize("engine", ENGINES)
def test_run_survives_fifty_kills_of_its_processes(
    engine: str, s3: S3, tmp_path: Path, crops: list[np.ndarray], figure
) -> None:
    chaos = Chaos(engine, s3, tmp_path / "s3/data/bucket/out", crops)
    try:
        for victims in sessions(KILLS[engine], chaos.random):
            for victim in victims:
                chaos.kill(victim)
        assert chaos.live_run().wait(PATIENCE_S) in (0, 5)
        last = start(chaos.source, chaos.output, ALONE, engine=engine)
        assert last.wait(PATIENCE_S) == 0, last.stderr.read()
    finally:
        stop(chaos.run)
    assert chaos.killed == KILLS[engine]
    verification = verify(chaos.output)
    assert verification.problems == []
    assert (verification.images, verification.rows, verification.files) == (chaos.photos,) * 3
    assert outputs(chaos.output) == made_without_faults(chaos.photos, tmp_path, crops, batch_size=1)
    kills = ", ".join(f"{count} of {victim}s" for victim, count in sorted(chaos.killed.items()))
    ends = ", ".join(f"{count} by {end}" for end, count in chaos.ends.most_common())
    figure(
        f"{engine}: {chaos.killed.total()} SIGKILLs at random moments ({kills})",
        f"{chaos.photos:,} images: 0 lost, 0 twice, 0 wrong bytes, `verify` holds; runs ended {ends}",
    )
