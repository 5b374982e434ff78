"""Check and measure a GPU: same images as a CPU, halving when memory is short, speed. Takes at most ten minutes.

Run: python tests/benchmarks/gpu.py [--images 2000] [--out gpu.md] [--device cpu]

Prints the tables of docs/performance.md. Exits with 1 if a check fails, and with 2 and a message if there is no CUDA device.
`--device cpu` goes through the same steps on a CPU, to find errors in this file; its figures mean nothing. Ray then gets a
GPU that does not exist, and the lack of memory is simulated.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import photos as made
import torch
import typer
from PIL import Image

from imagemill.jobs.paintings import swirls
from imagemill.models import checkpoint
from imagemill.models.latents import decode_latent
from imagemill.models.metrics import psnr_db
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision, fastest_dtype
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Output, Sample
from imagemill.pipeline.block_processor import BlockProcessor
from imagemill.pipeline.cluster.connection import connected
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.engines.local_channel import LocalChannel
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.output.stored_checkpoint import store_checkpoint
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.storage import Store
from imagemill.pipeline.tally import Tally
from imagemill.pipeline.worker_job import WorkerJob

SECONDS = 570.0
"""Time limit of the whole benchmark. Steps that no longer fit are left out with a message."""
LEAST_DB = {torch.float32: 50.0, torch.bfloat16: 35.0, torch.float16: 40.0}
"""Smallest PSNR between images of a GPU and of a CPU in float32 that counts as equal."""
MOST_MOVED = 1e-3
"""Largest share of latent symbols that may differ by one between a GPU and a CPU."""
PARAMS: dict[str, dict[str, Any]] = {"inpaint": {"missing": "random"}, "stylize": {"style": ["style.png"]}}
BATCH, REPEATS = 32, 5
RUN_IMAGES = {"cuda": 4000, "cpu": 24}
"""Number of images of each whole run by default."""


@dataclass
class Bench:
    """The device and the results of the benchmark."""

    device: str
    work: Path
    images: int
    lines: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    end: float = field(default_factory=lambda: time.monotonic() + SECONDS)

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.lines.append(line)

    def table(self, title: str, header: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> None:
        """Print a Markdown table row by row, as long as time is left."""
        self.say(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
        for row in rows:
            self.say(f"| {' | '.join(map(str, row))} |")
            if time.monotonic() > self.end:
                self.say(f"| *the rest did not fit into {SECONDS:.0f} s* |")
                return

    def check(self, right: bool, what: str) -> str:
        if not right:
            self.failures.append(what)
        return "yes" if right else "**no**"

    @property
    def dtypes(self) -> list[torch.dtype]:
        return [dtype for dtype in LEAST_DB if self.device == "cuda" or dtype != torch.float16]


def prepared(task: str, device: str) -> tuple[Any, Any]:
    """Return the bundled model of a task, and the parameters of the benchmark."""
    card, weights = checkpoint.read(TASKS[task].default_checkpoint)
    params = TASKS[task].Params(**PARAMS.get(task, {}))
    model = checkpoint.build(card, weights).to(device, memory_format=torch.channels_last)
    return TASK_OBJECTIVES[task].prepare(model, params, [swirls()], device), params


def photographs(count: int, height: int = 256, width: int = 256) -> list[np.ndarray]:
    """Return different crops (H,W,3) uint8 of photographs."""
    rng, paths = np.random.default_rng(0), made.sources(None)
    opened = [Image.open(path).convert("RGB") for path in paths[:count]]
    return [np.asarray(made.cut(opened[n % len(opened)], n, (width, height), rng)) for n in range(count)]


def predicted(task: str, images: list[np.ndarray], precision: Precision) -> list[Output]:
    model, params = prepared(task, precision.device)
    samples = [Sample(image.copy(), needs_quality=False, needs_image=False) for image in images]
    return TASK_OBJECTIVES[task].predict(model, samples, params, precision)


def equal_images(bench: Bench) -> Iterator[tuple[object, ...]]:
    """Compare each task in each number format with the CPU in float32: a batch, and one image in tiles."""
    sets = [photographs(4), photographs(1, 1100, 1500)] if bench.device == "cuda" else [photographs(1, 64, 64)]
    for task in sorted(TASKS):
        calm = [output for images in sets for output in predicted(task, images, Precision())]
        for dtype in bench.dtypes if task != "compress" else [torch.float32]:
            outputs = [o for images in sets for o in predicted(task, images, Precision(bench.device, dtype))]
            if task == "compress":
                pairs = list(zip(calm, outputs, strict=True))
                moved = max(float((a.latent != b.latent).mean()) for a, b in pairs)
                model, params = prepared(task, bench.device)
                plain, _ = prepared(task, "cpu")
                images = [image for each in sets for image in each]
                least = min(
                    psnr_db(*(decode_latent(m, a.latent, image.shape[:2], params.step, device) for m, device in both))
                    for (a, _), image in zip(pairs, images, strict=True)
                    for both in [((plain, "cpu"), (model, bench.device))]
                )
                right = moved <= MOST_MOVED and least >= LEAST_DB[dtype]
                figure = f"{least:.1f}, symbols moved {moved:.1e}"
            else:
                least = min(psnr_db(a.image, b.image) for a, b in zip(calm, outputs, strict=True))
                right, figure = least >= LEAST_DB[dtype], f"{least:.1f}"
            name = str(dtype).removeprefix("torch.")
            yield task, name, figure, bench.check(right, f"{task} in {name}: {figure} dB from the CPU")


def model_rates(bench: Bench) -> Iterator[tuple[object, ...]]:
    """Measure batches of a worker, including copies between host and device, without reading and writing files."""
    images = photographs(BATCH) if bench.device == "cuda" else photographs(1, 64, 64)
    for task in sorted(TASKS):
        model, params = prepared(task, bench.device)
        row: list[object] = [task]
        for dtype in LEAST_DB:
            if dtype not in bench.dtypes or (task == "compress" and dtype != torch.float32):
                row.append("–")
                continue
            times = []
            for _ in range(REPEATS + 1):
                samples = [Sample(image.copy(), needs_quality=False, needs_image=False) for image in images]
                began = time.perf_counter()
                TASK_OBJECTIVES[task].predict(model, samples, params, Precision(bench.device, dtype))
                times.append(time.perf_counter() - began)
            row.append(f"{len(images) / sorted(times[1:])[REPEATS // 2]:,.0f}")
        yield tuple(row)


def short_of_memory(bench: Bench) -> Iterator[tuple[object, ...]]:
    """Give a worker a third of the memory it used: batches and tiles are halved, and no image is lost."""
    cases = (("64 images of 512 px in one batch", 64, 512, 512), ("one image of 12 MP", 1, 3000, 4000))
    with connected(None, num_cpus=1):
        for title, count, height, width in cases if bench.device == "cuda" else (("8 images of 64 px", 8, 64, 64),):
            images = photographs(count, height, width)
            source, outs = Store(str(bench.work / f"memory{count}")), []
            for number, image in enumerate(images):
                source.write(f"{number:03d}.png", encode_rgb(image, "PNG"))
            for limit in (False, True):
                output = bench.work / f"memory{count}-{limit}"
                with memory_limit(bench, limit) as sizes:
                    rows = worker_rows(bench, source, Store(str(output)), count)
                paths = [output / uri for uri in rows["output_uri"].drop_null().to_pylist()]
                outs.append((rows, [np.asarray(Image.open(path)) for path in paths], sizes))
            (_, calm, whole), (rows, halved, tried) = outs
            least = (
                min(psnr_db(*pair) for pair in zip(calm, halved, strict=True)) if rows["stage"].null_count == count else 0
            )
            right = rows["stage"].null_count == count and least >= LEAST_DB[torch.bfloat16]
            text = f"{len(whole)} → {len(tried)} batches tried, {least:.1f} dB from the run with all memory"
            yield title, f"{rows['stage'].null_count} of {count} ok", text, bench.check(right, f"short of memory: {title}")


def worker_rows(bench: Bench, source: Store, output: Store, batch: int) -> Any:
    """Return the rows of a worker for all images of a folder, processed in this process."""
    import pyarrow as pa

    job = resolve(RunConfig(task="denoise", input=source.url, output=output.url))
    store_checkpoint(job.output, job.card, job.weights)
    lineage = dict.fromkeys(("model_id", "config_sha256", "parameters"), "-") | {"fence": 1, "task": "denoise"}
    told = WorkerJob(
        task="denoise",
        params={},
        checkpoint_sha256=job.card.sha256,
        style_images=[],
        source=job.source,
        output=job.output,
        max_pixels=job.config.max_pixels,
        image=job.config.image,
        reconstruct=False,
        quality=0.0,
        compression_level=1,
        lineage=lineage | {"checkpoint_sha256": job.card.sha256, "run_id": output.url.rpartition("/")[2]},
        batch_size=batch,
        threads=4,
        fetch_threads=4,
        fetch_per_host=4,
        gpus=float(bench.device == "cuda"),
        torch_threads=1,
        dtype=None,
    )
    channel = LocalChannel()
    return pa.concat_tables(BlockProcessor(told, channel, Tally("benchmark", channel))(build_plan(job).todo))


@contextmanager
def memory_limit(bench: Bench, limited: bool) -> Iterator[list[int]]:
    """Return the sizes of the batches that are tried; with a limit, a third of the earlier peak memory is available."""
    objective, sizes = TASK_OBJECTIVES["denoise"], []
    plain: Callable[..., list[Output]] = objective.predict

    def predict(model: Any, samples: list[Sample], *how: Any) -> list[Output]:
        sizes.append(len(samples))
        if limited and bench.device == "cpu" and len(samples) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory, by pretence")
        return plain(model, samples, *how)

    objective.predict = predict  # type: ignore[method-assign]
    if bench.device == "cuda":
        share = torch.cuda.max_memory_allocated() / 3 / torch.cuda.mem_get_info()[1] if limited else 1.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.set_per_process_memory_fraction(share)
    try:
        yield sizes
    finally:
        del objective.predict
        if bench.device == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0)


def command(bench: Bench, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run the command line as a separate process with all devices of the machine."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    if bench.device == "cpu":
        environment["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": 2, "GPU": 1})
    left = max(30.0, bench.end - time.monotonic())
    line = [sys.executable, "-m", "imagemill", *arguments]
    try:
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(line, 124, "", f"not done within the {left:.0f} s that were left")


def run_rates(bench: Bench) -> Iterator[tuple[object, ...]]:
    """Measure whole runs: one worker on the GPU, two workers on the GPU, and only CPUs."""
    source = bench.work / "photos"
    made.make(source, bench.images, None, mixed=False, noisy=True, kept=0, processes=os.cpu_count() or 1)
    (bench.work / "style.png").write_bytes(encode_rgb(swirls(), "PNG"))
    outputs: dict[str, Store] = {}
    ways = {"1 worker": [], "2 workers": ["pool.gpus_per_worker=0.5"], "CPUs": ["pool.gpu=false"]}
    plans = [("denoise", way) for way in ways] + [("compress", way) for way in ways]
    plans += [(task, "1 worker") for task in sorted(TASKS) if task not in ("denoise", "compress")]
    for task, way in plans if bench.device == "cuda" else plans[:2]:
        params = {
            key: [f"{bench.work}/style.png"] if key == "style" else value for key, value in PARAMS.get(task, {}).items()
        }
        settings = [*ways[way], "quality=0", *(f"params.{key}={json.dumps(value)}" for key, value in params.items())]
        limit = bench.images // 8 if way == "CPUs" else bench.images
        output = Store(str(bench.work / f"{task}-{way.replace(' ', '-')}"))
        outputs[f"{task} {way}"] = output
        words = [word for setting in settings for word in ("--set", setting)]
        ended = command(bench, task, str(source), output.url, "--limit", str(limit), *words)
        if ended.returncode:
            last = (ended.stderr.splitlines() or [""])[-1]
            yield task, way, f"exit {ended.returncode}", last, "", bench.check(False, f"{task}, {way}: {last}")
            continue
        record = json.loads(next(Path(output.url).glob("runs/*/run.json")).read_text())
        whole = sum(record["stage_seconds"].values())
        model = f"{record['stage_seconds'].get('model', 0) / whole:.0%}"
        expected = ["cpu"] if way == "CPUs" else [bench.device]
        right = not verify(output).problems and record["rejected"] == 0 and record["devices"] == expected
        done = bench.check(right, f"{task}, {way}: devices {record['devices']}, {record['rejected']} rejected")
        yield task, way, f"{record['images_per_s']:,.0f}", model, f"{record['seconds']['first_image']:.1f}", done
    if "denoise CPUs" in outputs:
        least = least_psnr(outputs["denoise 1 worker"], outputs["denoise CPUs"])
        right = bench.check(least >= LEAST_DB[torch.bfloat16], f"runs of denoise: {least:.1f} dB from the CPUs")
        yield "denoise", "1 worker compared with CPUs", f"at least {least:.1f} dB", "", "", right


def least_psnr(one: Store, other: Store) -> float:
    """Return the smallest PSNR over the images that both outputs contain."""
    found = []
    for output in (one, other):
        rows = read_parts(output, list_parts(output, "results"), ["rel_path", "output_uri"])
        found.append(dict(zip(rows["rel_path"].to_pylist(), rows["output_uri"].to_pylist(), strict=True)))
    common = sorted(found[0].keys() & found[1].keys())[:50]
    paths = [[Path(output.url) / uris[name] for output, uris in zip((one, other), found, strict=True)] for name in common]
    return min(psnr_db(*(np.asarray(Image.open(path).convert("RGB")) for path in pair)) for pair in paths)


def training_rate(bench: Bench) -> Iterator[tuple[object, ...]]:
    """Train the denoiser for one epoch, in the number format of the device."""
    config = {
        "name": "gpu-denoise",
        "task": "denoise",
        "architecture": "unet",
        "input": [str(bench.work / "photos")],
        "output": str(bench.work / "trained"),
        "epochs": 1,
        "crop": 64,
        "crops_per_image": 12 if bench.device == "cuda" else 1,
        "batch_size": 64 if bench.device == "cuda" else 4,
        "workers": 1,
    }
    (bench.work / "train.json").write_text(json.dumps(config))  # JSON is YAML
    ended = command(bench, "train", "-c", str(bench.work / "train.json"))
    if ended.returncode:
        last = (ended.stderr.splitlines() or [""])[-1]
        yield "denoise", f"exit {ended.returncode}", last, bench.check(False, f"training: {last}")
        return
    line = json.loads(next((bench.work / "trained/runs").glob("*/metrics.jsonl")).read_text().splitlines()[-1])
    right = bench.check(np.isfinite(line["valid_psnr_db"]), "training")
    yield "denoise", f"{line['crops_per_s']:,.0f}", f"{line['valid_psnr_db']:.2f}", right


def main(
    device: Annotated[str, typer.Option(help="cuda; cpu only tries this file")] = "cuda",
    images: Annotated[int | None, typer.Option(min=16, help="of a run")] = None,
    out: Annotated[Path | None, typer.Option(help="where the tables go as well")] = None,
) -> None:
    """Print the tables. Exit with 1 if a check fails, with 2 without a CUDA device."""
    if device not in RUN_IMAGES:
        raise typer.BadParameter(f"{device}; valid: {', '.join(RUN_IMAGES)}")
    if device == "cuda" and not torch.cuda.is_available():
        print(
            f"torch {torch.__version__} finds no CUDA device here. --device cpu tries this file without one", file=sys.stderr
        )
        raise typer.Exit(2)
    # TF32 is off, like in a run, because a later `decode` must give equal images.
    torch.backends.cudnn.allow_tf32 = False
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="imagemill-gpu-") as folder:
        bench = Bench(device, Path(folder), images or RUN_IMAGES[device])
        name = torch.cuda.get_device_name() if device == "cuda" else "a CPU in the place of a GPU: no figures"
        best = str(fastest_dtype(device)).removeprefix("torch.")
        bench.say(f"{name}, {os.cpu_count()} CPU cores, torch {torch.__version__}; by itself a run takes {best}")
        bench.table("The images of a CPU", ("task", "format", "least PSNR, dB", "equal"), equal_images(bench))
        bench.table("Short of memory", ("images", "rows", "batches", "right"), short_of_memory(bench))
        bench.table("Model alone, images/s of 256 px", ("task", "float32", "bfloat16", "float16"), model_rates(bench))
        header = ("task", "on", "images/s", "model's share of stages", "first image, s", "right")
        bench.table(f"Whole runs of {bench.images:,} images of 256 px", header, run_rates(bench))
        bench.table("Training", ("task", "crops/s of 64 px", "validation, dB", "right"), training_rate(bench))
        bench.say(f"\n{time.monotonic() - began:.0f} s in all; {len(bench.failures)} checks failed")
        for failure in bench.failures:
            bench.say(f"- {failure}")
        if out:
            out.write_text("\n".join(bench.lines) + "\n")
        raise typer.Exit(bool(bench.failures))


if __name__ == "__main__":
    typer.run(main)
