"""The rounds of the benchmark: peers, workloads, and runs that are measured and compared with float32."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import photos as made
import typer
from figures import AT_IMAGES, Run, Spread, Summary, spread, summary
from outcome import LATENT_TOLERANCE, PSNR_TOLERANCE_DB, deviation, images_in, pixels_of, steady_rate, times_of
from process_tree import watched

from imagemill.pipeline.worker_environment import WORKER_ENV

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = HERE / "peers"
CORES = len(os.sched_getaffinity(0))
# One thread per process, and memory that is not returned to the kernel. Imagemill sets this itself; tuned peers get it too.
TUNED = {k: v for k, v in WORKER_ENV.items() if k.startswith("MALLOC_")} | {"OMP_NUM_THREADS": "1"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "DAFT_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "1"}
SAMPLE = 12
"""Number of images of each run that are compared with float32."""
OWN_DECODER = 5.0
"""Factor of the tolerance for a peer that uses its own decoder. The table shows the actual difference."""
FEW_IMAGES = 10
"""The images of a small run, which shows the fixed cost."""
FEW_PEERS = ("imagemill", "imagemill-ray", "handwritten")
NOTHING_TO_DO = 10_000
TIMEOUT_SECONDS = 900.0
BEGAN = time.monotonic()


@dataclass(frozen=True)
class Peer:
    title: str
    script: tuple[str, ...]
    """A file in peers/ and its additional arguments; empty for Imagemill."""
    tuned: bool
    workloads: tuple[str, ...]
    slow: bool = False
    """Gets fewer images, because it would take most of the time."""
    engine: str | None = None
    """Engine of Imagemill."""
    own_decoder: bool = False
    """Decodes JPEGs without libjpeg, so pixels differ before the model sees them."""


ALL, UNIFORM = ("latents", "images", "sizes", "shards"), ("latents", "images")
TABLE = {
    "imagemill": Peer("Imagemill", (), False, ALL, engine="local"),
    "imagemill-ray": Peer("Imagemill on Ray", (), False, ALL, engine="ray"),
    "handwritten": Peer("hand-written loop", ("handwritten.py",), True, ALL),
    "dataloader-tuned": Peer("DataLoader, tuned", ("dataloader_tuned.py",), True, ALL),
    "daft-tuned": Peer("Daft, tuned", ("daft_tuned.py",), True, UNIFORM),
    "dataloader-written": Peer("DataLoader, as written", ("dataloader_written.py",), False, ALL, slow=True),
    "daft-written": Peer("Daft, as written", ("daft_written.py",), False, UNIFORM, slow=True, own_decoder=True),
    "ray-documented": Peer("Ray Data, as documented", ("ray_documented.py",), False, UNIFORM, slow=True),
}
# Runs only with --only: another way to tune a DataLoader.
ON_DEMAND = {"dataloader-main": Peer("DataLoader, model in main", ("dataloader_tuned.py", "--model", "main"), True, ALL)}


@dataclass(frozen=True)
class Load:
    """A workload and its numbers of images."""

    title: str
    images: int
    """For fast peers, in every round."""
    slow_images: int
    other: float | None = None
    """A second number of images for the slope, as a share of the first one, in the first round."""


LATENTS_ALONE = ["--set", "compression_level=3", "--set", "quality=0"]
"""The same work as the peers: no quality figures, which would decode each latent."""
LOADS = {
    "latents": Load("256-px JPEGs → encoder → Parquet", AT_IMAGES, 1_000, other=0.5),
    "images": Load("256-px JPEGs → denoised JPEGs", 400, 200),
    "sizes": Load("100–4,000-px JPEGs → denoised JPEGs", 16, 8),
    "shards": Load("tars in S3 → encoder → Parquet", 2_000, 1_000),
}
QUICK = {"latents": Load(LOADS["latents"].title, 200, 100), "images": Load(LOADS["images"].title, 64, 32)}
OTHER_ROUNDS = 1


@dataclass
class Bench:
    """The state of a benchmark."""

    work: Path
    out: Path
    loads: dict[str, Load]
    peers: dict[str, Peer]
    photos: str | None
    settings: list[str]
    runs: list[Run] = field(default_factory=list)
    limits: dict[str, list[dict]] = field(default_factory=dict)
    references: dict[str, tuple[dict, dict | None]] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    """Environment variables with the credentials and endpoint of the S3 server."""

    def counts(self, workload: str, peer: str, round_: int) -> list[int]:
        """Return the numbers of images that a peer gets in a round, one per run."""
        load = self.loads[workload]
        images = load.slow_images if self.peers[peer].slow else load.images
        if load.other is None or round_ >= OTHER_ROUNDS:
            return [images]
        if peer == "imagemill":
            # Its start varies by more than small runs take, and its memory must not grow: a quarter to twice as many.
            return [images, images // 4, images * 2]
        return [images, int(images * load.other)]

    def most(self, workload: str) -> int:
        most = max(count for peer in self.takers(workload) for count in self.counts(workload, peer, 0))
        return max(most, FEW_IMAGES, NOTHING_TO_DO if self.goes_on(workload) else 0)

    def goes_on(self, workload: str) -> bool:
        """Return whether this benchmark measures a second run over finished images."""
        return workload == "latents" and "imagemill" in self.peers and self.loads["latents"].other is not None

    def takers(self, workload: str) -> list[str]:
        return [name for name, peer in self.peers.items() if workload in peer.workloads]

    def source(self, workload: str, images: int) -> str:
        """Return a folder with the first images, or the S3 prefix of their shards."""
        if workload == "shards":
            return f"s3://bench/{images}"
        return str(made.first(self.work / "all" / workload, images, self.work / "in" / workload / str(images)))

    def make_inputs(self) -> None:
        for workload in self.loads.keys() | ({"latents"} if "shards" in self.loads else set()):
            if workload != "shards":
                most = max(self.most(w) for w in self.loads if w == workload or (workload, w) == ("latents", "shards"))
                denoised = workload in ("images", "sizes")
                folder = self.work / "all" / workload
                made.make(folder, most, self.photos, workload == "sizes", denoised, SAMPLE, CORES)
        # Flush written files now, not during a measurement.
        os.sync()

    def make_references(self) -> None:
        for workload in self.loads:
            kind = "latents" if workload == "shards" else workload
            folder = self.work / "all" / kind
            fewest = min(count for peer in self.takers(workload) for count in self.counts(workload, peer, 0))
            paths = sorted(folder.iterdir())[: min(SAMPLE, fewest)]
            out = self.work / f"{workload}.npz"
            command = [sys.executable, str(PEERS / "reference.py"), workload, str(out), *map(str, paths)]
            subprocess.run(command, check=True, env=self.environment_of(True), cwd=ROOT)
            with np.load(out) as archive:
                reference = dict(archive)
            clean = {p.name: pixels_of(Path(f"{folder}.clean/{p.name}.png").read_bytes()) for p in paths}
            self.references[workload] = reference, clean if kind != "latents" else None

    def environment_of(self, tuned: bool) -> dict[str, str]:
        """Return the environment of a peer; with `tuned` also the settings of one thread and of glibc."""
        inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS",)}
        return inherited | QUIET | self.environment | (TUNED if tuned else {}) | {"PYTHONPATH": str(PEERS)}

    def command(self, workload: str, peer: str, source: str, output: Path) -> list[str]:
        if script := self.peers[peer].script:
            return [sys.executable, str(PEERS / script[0]), workload, source, str(output), *script[1:]]
        if workload in ("latents", "shards"):
            task = ["compress", source, str(output), "--step", "26", *LATENTS_ALONE]
        else:
            task = ["denoise", source, str(output), "--sigma", "15", "--set", "image.format=jpeg"]
        return [
            sys.executable,
            "-m",
            "imagemill",
            *task,
            "--engine",
            str(self.peers[peer].engine),
            *(word for setting in self.settings for word in ("--set", setting)),
        ]

    def run(self, workload: str, peer: str, images: int, round_: int, keep: Path | None = None) -> Run:
        """Run a peer once. Delete its output, or rename it to `keep`."""
        source, output = self.source(workload, images), self.work / "out"
        if self.peers[peer].script:
            output.mkdir()
        log = self.work / "log"
        environment = self.environment_of(self.peers[peer].tuned)
        usage = watched(self.command(workload, peer, source, output), environment, log, ROOT, TIMEOUT_SECONDS)
        missing, rate, off, stages, seconds = images, None, float("inf"), {}, {}
        if usage.code == 0:
            missing = abs(images - len(images_in(output)))
            rate = steady_rate(times_of(output))
            reference, clean = self.references[workload]
            listed = {name: value for name, value in reference.items() if int(Path(name).stem) < images}
            off = deviation(output, listed, clean)
            for path in output.glob("runs/*/run.json"):
                record = json.loads(path.read_text())
                stages, seconds = record.get("stage_seconds", {}), record.get("seconds", {})
        else:
            typer.echo(f"{peer} on {workload} ended with {usage.code}:\n{log.read_text(errors='replace')[-2000:]}", err=True)
        tolerance = LATENT_TOLERANCE if self.references[workload][1] is None else PSNR_TOLERANCE_DB
        tolerance *= OWN_DECODER if self.peers[peer].own_decoder else 1
        run = Run(
            workload, peer, images, round_, usage.code, round(usage.wall_s, 3), round(usage.cpu_s, 2),
            round(usage.peak_pss_mb, 1), usage.processes, rate, off, off <= tolerance, missing, stages, seconds,
        )  # fmt: skip
        if keep and usage.code == 0 and not keep.exists():
            output.rename(keep)
        shutil.rmtree(output, ignore_errors=True)
        self.runs.append(run)
        self.say(run)
        return run

    def say(self, run: Run) -> None:
        word = "ok" if run.fine and run.equal else "NOT EQUAL" if run.fine else f"FAILED, {run.missing} missing"
        rate = f"{run.rate:8.1f}/s" if run.rate else " " * 10
        typer.echo(
            f"{time.monotonic() - BEGAN:6.0f} s  round {run.round + 1}  {run.workload:8}{run.peer:20}{run.images:>7,}"
            f"{run.wall_s:9.1f} s {rate}{run.cpu_s:8.1f} CPU s{run.peak_pss_mb:8.0f} MB  off {run.deviation:.2g}  {word}"
        )

    def limit(self, workload: str) -> None:
        folder = self.work / "limit"
        folder.mkdir()
        # Use all images of a small workload, because mixed sizes are only complete together.
        load = self.loads[workload]
        source = self.source(workload, load.images)
        arguments = [workload, source, str(folder), str(min(load.images, 400))]
        command = [sys.executable, str(PEERS / "limit.py"), *arguments]
        answer = subprocess.run(
            command, check=True, env=self.environment_of(True), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        shutil.rmtree(folder)
        self.limits.setdefault(workload, []).append(json.loads(answer.stdout))

    def round(self, number: int) -> None:
        for workload in self.loads:
            self.limit(workload)
            peers = self.takers(workload)
            # Rotate the order, so that no peer is always first or always after the same one.
            turn = number % len(peers)
            for peer in peers[turn:] + peers[:turn]:
                for images in self.counts(workload, peer, number):
                    self.run(workload, peer, images, number, self.work / "done" if self.wanted(workload, peer) else None)

    def wanted(self, workload: str, peer: str) -> bool:
        """Return whether the output is kept for a second run."""
        return peer == "imagemill" and self.goes_on(workload)

    def fixed(self, rounds: int) -> dict[str, Spread | None]:
        """Measure fixed costs: seconds of whole processes with few images and with nothing to do, and of their parts."""
        source, output = self.source("latents", NOTHING_TO_DO), self.work / "done"
        python = [sys.executable, "-c"]
        commands = {
            f"nothing to do among {NOTHING_TO_DO:,}": self.command("latents", "imagemill", source, output),
            "imagemill --version": [sys.executable, "-m", "imagemill", "--version"],
            f"listing {NOTHING_TO_DO:,} files": [*python, f"import os; [e.stat() for e in os.scandir({source!r})]"],
        }
        walls: dict[str, list[float]] = {}
        for number in range(rounds):
            for peer in (name for name in FEW_PEERS if name in self.peers):
                run = self.run("latents", peer, FEW_IMAGES, number)
                walls.setdefault(f"{FEW_IMAGES} images, {self.peers[peer].title}", []).append(run.wall_s)
            for name, command in commands.items():
                usage = watched(command, self.environment_of(False), self.work / "log", ROOT, TIMEOUT_SECONDS)
                if usage.code == 0:
                    walls.setdefault(name, []).append(usage.wall_s)
        # These runs are reported separately from the workload.
        self.runs = [run for run in self.runs if run.images != FEW_IMAGES]
        return {name: spread(seconds) for name, seconds in walls.items()}

    def summaries(self) -> dict[str, list[Summary]]:
        """Return the summaries of each workload, in the order of the table."""
        found = {}
        for workload in self.loads:
            of = [[r for r in self.runs if (r.workload, r.peer) == (workload, peer)] for peer in self.takers(workload)]
            found[workload] = [one for runs in of if runs and (one := summary(runs))]
        return found
