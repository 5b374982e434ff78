"""Compare Imagemill with alternatives on the same images, weights and outputs: `make bench`.

Run: python tests/benchmarks/bench.py [--quick] [--rounds 2] [--only PEER]… [--workloads latents,images] [--images N]

Each run is a new process that writes into an empty folder. In each round every peer runs every workload, in turn, and the
component limit is measured. Writes bench.json (every run), bench.md and bench.png to `--out`.

Inputs are made once and are in the page cache for all peers. Daft and Ray Data as documented are left out of `sizes` (their
batches have one size) and `shards` (neither opens a tar in S3 without code written by the user).
"""

import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import photos as made
import typer
from page import leave, machine
from rounds import BEGAN, LOADS, ON_DEMAND, QUICK, ROOT, TABLE, Bench, Load


@contextlib.contextmanager
def bucket(bench: Bench) -> Iterator[None]:
    """Write shards of the same images and serve them by an S3 server on loopback, if a workload needs them."""
    if "shards" not in bench.loads:
        yield
        return
    sys.path.append(str(ROOT))
    from tests.support.servers import KEY, SECRET, environment_of, rclone

    server = rclone(bench.work / "s3", "--auth-key", f"{KEY},{SECRET}")
    for images in {count for peer in bench.takers("shards") for count in bench.counts("shards", peer, 0)}:
        made.shards(bench.work / "all/latents", images, bench.work / "s3/data/bench" / str(images))
    bench.environment = environment_of(f"http://127.0.0.1:{server.port}")
    try:
        yield server.start()
    finally:
        server.kill()


def main(
    quick: Annotated[bool, typer.Option("--quick", help="run one small round to find errors")] = False,
    rounds: Annotated[int, typer.Option(min=1)] = 2,
    images: Annotated[int | None, typer.Option(min=2, help="number of images of each workload, for every peer")] = None,
    only: Annotated[list[str] | None, typer.Option("--only", metavar="PEER", help=", ".join(TABLE | ON_DEMAND))] = None,
    workloads: Annotated[str | None, typer.Option(help=f"one or more of {','.join(LOADS)}")] = None,
    photos: Annotated[str | None, typer.Option(help="photographs to crop; scikit-image's by default")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="pass to Imagemill")] = None,
    out: Annotated[Path, typer.Option(help="folder for the figures")] = Path("bench"),
    work: Annotated[Path | None, typer.Option(help="folder for temporary inputs and outputs")] = None,
) -> None:
    """Run the benchmark. Exit with 1 if a peer fails or its outputs differ."""
    loads = dict(QUICK if quick else LOADS)
    if workloads:
        known = LOADS | QUICK if quick else LOADS
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
                # Write after each round, so that an interrupted benchmark keeps its figures.
                leave(bench, about, fixed, number + 1)
    typer.echo(f"{time.monotonic() - BEGAN:.0f} s; {out}/bench.md, bench.png, bench.json")
    if bad := [run for run in bench.runs if not run.fine or not run.equal]:
        typer.echo(f"{len(bad)} of {len(bench.runs)} runs failed or differ", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
