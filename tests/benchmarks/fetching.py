"""Measure images/s from a web server on loopback that answers after 100 ms, by one worker and by img2dataset.

Run: python tests/benchmarks/fetching.py [--images 2000] [--img2dataset FOLDER/bin/img2dataset]

Imagemill fetches and hashes each image and reads its header, without a model. img2dataset downloads the same list without
resizing, and its own statistics give its rate.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import photos as made
import typer
from rounds import ROOT

LATENCY_SECONDS = 0.1
FILES = 200
"""Different files; the URLs of the list repeat them with different queries."""


def serve(folder: str) -> None:
    """Serve the files of a folder on a free port, which is printed, until stdin ends."""
    import asyncio

    from aiohttp import web

    contents = {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    async def answer(request: web.Request) -> web.Response:
        await asyncio.sleep(LATENCY_SECONDS)
        return web.Response(body=contents[request.path[1:]], content_type="image/jpeg")

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/{name}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    asyncio.run(main())


def fetch_rate(manifest: Path, output: Path, threads: int, images: int) -> float:
    """Return the images/s of one worker that only fetches."""
    import dataclasses

    from imagemill.pipeline.config import RunConfig
    from imagemill.pipeline.resolve import build_plan, resolve
    from tests.support.worker_jobs import job_here, processor_here

    config = RunConfig(task="denoise", input=str(manifest), output=str(output), limit=images, source={"http": "any"})
    resolved = resolve(config)
    job = dataclasses.replace(job_here(resolved), fetch_threads=threads, fetch_per_host=threads)
    references = build_plan(resolved).todo.to_pylist()
    processor = processor_here(job)
    processor.suspects = NoSuspects()
    began = time.perf_counter()
    items = list(processor.reading.read_ahead(references, processor._fetch, threads))
    seconds = time.perf_counter() - began
    assert not any(item.error for item in items), [item.error for item in items if item.error][:1]
    return len(items) / seconds


class NoSuspects:
    """Stands for the suspects of a block: no image ended a process before."""

    def verdict(self, image_id: str) -> None:
        return None


def peer_rate(program: str, manifest: Path, output: Path, threads: int) -> float:
    """Return the images/s of img2dataset, according to its statistics."""
    options = {
        "url_list": manifest, "input_format": "csv", "url_col": "url", "output_folder": output, "output_format": "files",
        "processes_count": 1, "thread_count": threads, "resize_mode": "no", "disable_all_reencoding": True,
        "enable_wandb": False, "number_sample_per_shard": 100_000,
    }  # fmt: skip
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"})
    stats = json.loads(next(output.glob("*_stats.json")).read_text())
    assert stats["successes"] == stats["count"], stats
    return float(stats["count"] / (stats["end_time"] - stats["start_time"]))


def main(
    images: Annotated[int, typer.Option(min=100, help="URLs in the list")] = 2000,
    img2dataset: Annotated[str | None, typer.Option(help="program img2dataset, in another environment")] = None,
    server_of: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Print a table of images per second."""
    sys.path.append(str(ROOT))
    if server_of:
        serve(server_of)
        return
    with tempfile.TemporaryDirectory(prefix="imagemill-fetching-") as name:
        folder = Path(name)
        made.make(folder / "in", FILES, None, False, False, 0, os.cpu_count() or 1)
        files = sorted((folder / "in").rglob("*.jpg"))
        command = [sys.executable, __file__, "--server-of", str(files[0].parent)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            assert server.stdin
            port = int(server.stdout.readline())
            urls = [f"http://127.0.0.1:{port}/{files[n % len(files)].name}?n={n}" for n in range(images)]
            manifest = folder / "list.csv"
            manifest.write_text("\n".join(["url", *urls]) + "\n")
            print("| | threads | images/s |\n|---|--:|--:|")
            for threads in (2, 8, 16, 32, 64):
                rate = fetch_rate(manifest, folder / f"out-{threads}", threads, min(images, 30 * threads))
                print(f"| one worker, fetching alone | {threads} | {rate:.0f} |", flush=True)
            for threads in (32, 256) if img2dataset else ():
                rate = peer_rate(str(img2dataset), manifest, folder / f"peer-{threads}", threads)
                print(f"| img2dataset, one process | {threads} | {rate:.0f} |", flush=True)
            server.stdin.close()


if __name__ == "__main__":
    typer.run(main)
