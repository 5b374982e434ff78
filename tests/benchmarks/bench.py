"""Imagemill beside what else a person would take, on the same images, weights and outputs: `make bench`.

python tests/benchmarks/bench.py [--quick] [--rounds 2] [--only PEER]… [--workloads latents,images] [--images N]

Each run is a fresh process that writes into an empty folder. Peers take turns, a workload after the other, round by round;
the component limit is measured in each round too. Left in `--out`: bench.json (every run), bench.md, bench.png.

Inputs are made once and lie in the page cache for all. Daft, and Ray Data as documented, are left out of `sizes` (their
batches are of one size) and `shards` (neither opens a tar in S3 without a reader that one writes oneself).
"""

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import numpy as np
import photos as made
import typer
from figures import AT_IMAGES, Run, Spread, Summary, number, spread, summary, table
from outcome import LATENT_TOLERANCE, PSNR_TOLERANCE_DB, deviation, images_in, pixels_of, steady_rate, times_of
from process_tree import watched

from pipeline.cluster.connection import WORKER_ENV

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEERS = HERE / "peers"
CORES = len(os.sched_getaffinity(0))
# One thread for each process and memory that is kept: what everyone who tunes torch on CPUs sets, and Imagemill sets itself.
TUNED = {k: v for k, v in WORKER_ENV.items() if k.startswith("MALLOC_")} | {"OMP_NUM_THREADS": "1"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "DAFT_ANALYTICS_ENABLED": "0", "DO_NOT_TRACK": "1"}
SAMPLE = 12
"""Images of each run that are compared with float32."""
OWN_DECODER = 5.0
"""How many tolerances are left to a peer whose decoder is its own; the table shows how far it is off."""
NO_IMAGES = 2
"""As few as make a run that has work: what it takes is its fixed cost."""
NOTHING_TO_DO = 10_000
TIMEOUT_SECONDS = 900.0
VERSIONS = ("torch", "ray", "daft", "pyarrow", "pillow", "numpy")


@dataclass(frozen=True)
class Peer:
    title: str
    script: tuple[str, ...]
    """A file below peers/ and its further arguments; none for Imagemill."""
    tuned: bool
    workloads: tuple[str, ...]
    slow: bool = False
    """Given fewer images, as it would take most of the time."""
    own_decoder: bool = False
    """Reads JPEGs by other code than libjpeg, so pixels differ before the model sees them."""


ALL, UNIFORM = ("latents", "images", "sizes", "shards"), ("latents", "images")
TABLE = {
    "imagemill": Peer("Imagemill", (), False, ALL),
    "handwritten": Peer("hand-written loop", ("handwritten.py",), True, ALL),
    "dataloader-tuned": Peer("DataLoader, tuned", ("dataloader_tuned.py",), True, ALL),
    "daft-tuned": Peer("Daft, tuned", ("daft_tuned.py",), True, UNIFORM),
    "dataloader-written": Peer("DataLoader, as written", ("dataloader_written.py",), False, ALL, slow=True),
    "daft-written": Peer("Daft, as written", ("daft_written.py",), False, UNIFORM, slow=True, own_decoder=True),
    "ray-documented": Peer("Ray Data, as documented", ("ray_documented.py",), False, UNIFORM, slow=True),
}
# Runs only when it is asked for with --only: another way to tune a DataLoader.
ON_DEMAND = {"dataloader-main": Peer("DataLoader, model in main", ("dataloader_tuned.py", "--model", "main"), True, ALL)}


@dataclass(frozen=True)
class Load:
    """A workload, and how much of it."""

    title: str
    images: int
    """For peers that are fast, in every round."""
    slow_images: int
    other: float | None = None
    """A second count for the slope, as a share of the first, in the first round."""


LATENTS_ALONE = ["--set", "compression_level=3", "--set", "quality=0"]
"""As the others do it: no figures of quality, which would take decoding each latent."""
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
    """A benchmark on its way."""

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
    """What the S3 server asks for."""

    def counts(self, workload: str, peer: str, round_: int) -> list[int]:
        """How many images a peer gets in a round."""
        load = self.loads[workload]
        images = load.slow_images if self.peers[peer].slow else load.images
        if load.other is None or round_ >= OTHER_ROUNDS:
            return [images]
        if peer == "imagemill":
            # Its start scatters by more than small counts take, and its memory must not grow: a quarter to twice as many.
            return [images, images // 4, images * 2]
        return [images, int(images * load.other)]

    def most(self, workload: str) -> int:
        most = max(count for peer in self.takers(workload) for count in self.counts(workload, peer, 0))
        return max(most, NO_IMAGES, NOTHING_TO_DO if self.goes_on(workload) else 0)

    def goes_on(self, workload: str) -> bool:
        """Whether a second run over many images is part of this."""
        return workload == "latents" and "imagemill" in self.peers and self.loads["latents"].other is not None

    def takers(self, workload: str) -> list[str]:
        return [name for name, peer in self.peers.items() if workload in peer.workloads]

    def source(self, workload: str, images: int) -> str:
        """A folder with the first images, or where in S3 their shards are."""
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
        # What was written goes to the disk now, not while something is timed.
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
        """As a person has it, and with `tuned` as one who tunes sets it."""
        inherited = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS",)}
        path = os.pathsep.join([str(ROOT), str(PEERS)])
        return inherited | QUIET | self.environment | (TUNED if tuned else {}) | {"PYTHONPATH": path}

    def command(self, workload: str, peer: str, source: str, output: Path) -> list[str]:
        if script := self.peers[peer].script:
            return [sys.executable, str(PEERS / script[0]), workload, source, str(output), *script[1:]]
        if workload in ("latents", "shards"):
            task = ["compress", source, str(output), "--step", "26", *LATENTS_ALONE]
        else:
            task = ["denoise", source, str(output), "--sigma", "15", "--set", "image.format=jpeg"]
        return [sys.executable, "-m", "jobs", *task, *(word for setting in self.settings for word in ("--set", setting))]

    def run(self, workload: str, peer: str, images: int, round_: int, keep: Path | None = None) -> Run:
        """One run; its output is deleted, or kept under another name."""
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
        # All of few: mixed sizes are a mixture only together.
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
            # Nobody is always first, or always after the same one.
            turn = number % len(peers)
            for peer in peers[turn:] + peers[:turn]:
                for images in self.counts(workload, peer, number):
                    self.run(workload, peer, images, number, self.work / "done" if self.wanted(workload, peer) else None)

    def wanted(self, workload: str, peer: str) -> bool:
        """Whether an output is kept, to run over it again."""
        return peer == "imagemill" and self.goes_on(workload)

    def fixed(self, rounds: int) -> dict[str, Spread | None]:
        """Seconds of Imagemill's runs over almost nothing, and over what is done already."""
        source, output = self.source("latents", NOTHING_TO_DO), self.work / "done"
        few = [self.run("latents", "imagemill", NO_IMAGES, number) for number in range(rounds)]
        # Not counted as figures of the workload: they have a place of their own.
        self.runs = [run for run in self.runs if run.images != NO_IMAGES]
        command, environment = self.command("latents", "imagemill", source, output), self.environment_of(False)
        watched(command, environment, self.work / "log", ROOT, TIMEOUT_SECONDS)
        imports = [sys.executable, "-c", "import jobs.batch"]
        again = [watched(command, environment, self.work / "log", ROOT, TIMEOUT_SECONDS) for _ in range(rounds)]
        alone = [watched(imports, environment, self.work / "log", ROOT, TIMEOUT_SECONDS) for _ in range(rounds)]
        return {
            f"{NO_IMAGES} images": spread(run.wall_s for run in few),
            f"nothing to do among {NOTHING_TO_DO:,}": spread(usage.wall_s for usage in again if usage.code == 0),
            "imports alone": spread(usage.wall_s for usage in alone),
        }

    def summaries(self) -> dict[str, list[Summary]]:
        """By workload, in the table's order."""
        found = {}
        for workload in self.loads:
            of = [[r for r in self.runs if (r.workload, r.peer) == (workload, peer)] for peer in self.takers(workload)]
            found[workload] = [one for runs in of if runs and (one := summary(runs))]
        return found


BEGAN = time.monotonic()


def machine() -> dict[str, str]:
    """What a figure needs to be understood."""
    cpu = next((line.partition(":")[2].strip() for line in lines_of("/proc/cpuinfo") if line.startswith("model name")), "?")
    flags = next((line for line in lines_of("/proc/cpuinfo") if line.startswith("flags")), "").split()
    memory = next((line.split()[1] for line in lines_of("/proc/meminfo") if line.startswith("MemTotal")), "0")
    return {
        "cpu": cpu,
        "cores": str(CORES),
        "instructions": " ".join(flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags),
        "memory": f"{int(memory) / 1e6:.0f} GB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{name} {version(name)}" for name in VERSIONS),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "set": ", ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith(("OMP_", "MALLOC_"))) or "nothing",
    }


def lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


@contextlib.contextmanager
def bucket(bench: Bench) -> Iterator[None]:
    """Shards of the same images, and an S3 server on loopback over them, where they are needed."""
    if "shards" not in bench.loads:
        yield
        return
    sys.path.append(str(ROOT / "tests/faults"))
    from servers import KEY, SECRET, environment_of, rclone

    server = rclone(bench.work / "s3", "--auth-key", f"{KEY},{SECRET}")
    for images in {count for peer in bench.takers("shards") for count in bench.counts("shards", peer, 0)}:
        made.shards(bench.work / "all/latents", images, bench.work / "s3/data/bench" / str(images))
    bench.environment = environment_of(f"http://127.0.0.1:{server.port}")
    try:
        yield server.start()
    finally:
        server.kill()


def report(bench: Bench, about: dict[str, str], fixed: dict[str, Spread | None], rounds: int) -> str:
    """The Markdown page."""
    lines = ["# Side by side", "", *(f"- {name}: {value}" for name, value in about.items()), ""]
    lines += [
        f"Medians of {rounds} interleaved rounds (least–most); each run a fresh process into an empty folder.",
        "`images/s inside the run`: from the first image that was done to the last. `by slope`: from whole processes at two",
        f"counts. `limit`: decode, model, encode and write measured apart, in {CORES} processes of one thread at once.",
        "PSS: the most that the whole process tree had at once.",
    ]
    limits = {w: spread(answer["images_per_s"] for answer in answers) for w, answers in bench.limits.items()}
    for workload, summaries in bench.summaries().items():
        lines += [
            "",
            f"## {workload}: {bench.loads[workload].title}",
            "",
            *section(bench, workload, summaries, limits[workload]),
        ]
    if fixed:
        said = ", ".join(f"{name} {value.text()}" for name, value in fixed.items() if value)
        lines += ["", "## Imagemill's fixed costs", "", f"Whole processes, s: {said}."]
    return "\n".join(lines) + "\n"


def section(bench: Bench, workload: str, summaries: list[Summary], limit: Spread | None) -> list[str]:
    """What there is to say of one workload."""
    unit = "relative" if bench.references[workload][1] is None else "dB"
    ours = next((one for one in summaries if one.peer == "imagemill"), None)
    titles = {name: peer.title for name, peer in bench.peers.items()}
    lines = [*table(summaries, titles, limit, ours, unit), ""]
    answers = bench.limits[workload]
    parts = {name: spread(answer["ms"][name] for answer in answers) for name in answers[0]["ms"]}
    each = ", ".join(f"{name} {number(part.median)}" for name, part in parts.items() if part)
    lines.append(f"Limit, ms an image in one process: {each}.")
    if ours and ours.stage_ms:
        stages = ", ".join(f"{name} {number(ms)}" for name, ms in ours.stage_ms.items())
        lines.append(f"Imagemill's stages, ms an image (time of its threads, waiting included): {stages}.")
    if own := [titles[one.peer] for one in summaries if bench.peers[one.peer].own_decoder]:
        lines.append(
            f"{', '.join(own)}: its own JPEG decoder, so its pixels differ before the model; {OWN_DECODER:g} times "
            "the tolerance is left to it."
        )
    if workload != "latents":
        return lines
    at = [(one, one.seconds_at(AT_IMAGES)) for one in summaries]
    seconds = [
        f"{titles[one.peer]} {number(value)}{'' if one.images == AT_IMAGES else ' (by slope)'}" for one, value in at if value
    ]
    if seconds:
        lines.append(f"Whole process at {AT_IMAGES:,} images, s: {', '.join(seconds)}.")
    runs = [run for run in bench.runs if (run.workload, run.peer) == ("latents", "imagemill") and run.fine]
    peaks = [(n, spread(r.peak_pss_mb for r in runs if r.images == n)) for n in sorted({run.images for run in runs})]
    if peaks:
        lines.append(f"Imagemill's peak PSS in MB, by images: {', '.join(f'{n:,}: {p.text()}' for n, p in peaks if p)}.")
    return lines


def main(
    quick: Annotated[bool, typer.Option("--quick", help="one small round: shows what is broken, no figures")] = False,
    rounds: Annotated[int, typer.Option(min=1)] = 2,
    images: Annotated[int | None, typer.Option(min=2, help="of each workload, for every peer")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="PEER", help=", ".join(TABLE | ON_DEMAND))] = None,
    workloads: Annotated[str | None, typer.Option(help=f"some of {','.join(LOADS)}")] = None,
    photos: Annotated[str | None, typer.Option(help="a folder of photographs to cut from; scikit-image's if absent")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="given to Imagemill")] = None,
    out: Annotated[Path, typer.Option(help="where the figures go")] = Path("bench"),
    work: Annotated[Path | None, typer.Option(help="where inputs and outputs lie meanwhile")] = None,
) -> None:
    """Run the benchmark; exit 1 when a peer failed or its outputs differ."""
    loads = dict(QUICK if quick else LOADS)
    if workloads:
        known = QUICK | LOADS if quick else LOADS
        if unknown := set(workloads.split(",")) - known.keys():
            raise typer.BadParameter(f"{', '.join(unknown)}; valid: {', '.join(known)}")
        loads = {name: known[name] for name in workloads.split(",")}
    if images:
        loads = {name: Load(load.title, images, images) for name, load in loads.items()}
    if unknown := set(only or ()) - (TABLE | ON_DEMAND).keys():
        raise typer.BadParameter(f"{', '.join(unknown)}; valid: {', '.join(TABLE | ON_DEMAND)}")
    peers = {name: (TABLE | ON_DEMAND)[name] for name in only} if only else TABLE
    rounds = 1 if quick else rounds
    out.mkdir(parents=True, exist_ok=True)
    about, fixed = machine(), {}
    with tempfile.TemporaryDirectory(prefix="imagemill-bench-", dir=work) as folder:
        bench = Bench(Path(folder), out, loads, dict(peers), photos, set_ or [])
        bench.make_inputs()
        bench.make_references()
        with bucket(bench):
            for number in range(rounds):
                bench.round(number)
                if number == 0 and "latents" in loads and bench.goes_on("latents"):
                    fixed = bench.fixed(rounds)
                # What there is by now stays when the rest is cut off.
                leave(bench, about, fixed, number + 1)
    typer.echo(f"{time.monotonic() - BEGAN:.0f} s; {out}/bench.md, bench.png, bench.json")
    if bad := [run for run in bench.runs if not run.fine or not run.equal]:
        typer.echo(f"{len(bad)} of {len(bench.runs)} runs failed or differ", err=True)
        raise typer.Exit(1)


def leave(bench: Bench, about: dict[str, str], fixed: dict[str, Spread | None], rounds: int) -> None:
    """The raw figures, the table and the chart."""
    from chart import draw

    raw = {
        "machine": about,
        "runs": [run.as_json() for run in bench.runs],
        "limits": bench.limits,
        "fixed": {name: vars(value) for name, value in fixed.items() if value},
    }
    (bench.out / "bench.json").write_text(json.dumps(raw, indent=1))
    (bench.out / "bench.md").write_text(report(bench, about, fixed, rounds))
    limits = {w: spread(answer["images_per_s"] for answer in answers) for w, answers in bench.limits.items()}
    titles = {name: peer.title for name, peer in bench.peers.items()}
    note = (
        f"{about['cpu']}, {about['cores']} cores, {about['instructions']}; {about['versions']}; medians of {rounds} rounds"
    )
    loads = {name: load.title for name, load in bench.loads.items()}
    draw(bench.out / "bench.png", bench.runs, bench.summaries(), limits, loads, titles, note)


if __name__ == "__main__":
    typer.run(main)
