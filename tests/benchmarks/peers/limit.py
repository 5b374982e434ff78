"""Measure the limit of the machine: each component separately, in one process per core with one thread each.

`limit.py WORKLOAD INPUT FOLDER COUNT` prints JSON: milliseconds per image of each component in one process, and the rate of
all processes if they did nothing else.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bucket import members_of, shards_of
from work import PROCESSES, Rows, Tuned, batches, gives_latents


@contextmanager
def component(barrier: Any, seconds: dict[str, float], name: str) -> Iterator[None]:
    """Run the same component in all processes at the same time."""
    barrier.wait()
    began = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - began


def measure(workload: str, source: str, folder: Path, count: int, rank: int, barrier: Any, answers: Any) -> None:
    tuned, seconds = Tuned(workload), {}
    share = max(1, count // PROCESSES)
    if workload == "shards":
        listed = shards_of(source)
        mine = listed[rank::PROCESSES] or listed[:1]
        fetch = lambda: [pair for pair, _ in zip(members_of(source, mine), range(share), strict=False)]  # noqa: E731
    else:
        paths = sorted(Path(source).iterdir())[:count][rank::PROCESSES]
        fetch = lambda: [(path.name, path.read_bytes()) for path in paths]  # noqa: E731
    named = fetch()
    # The first use of torch, pyarrow and zstd does not count.
    first = tuned.run([tuned.decode(named[0][1])])[0]
    warm = Rows(folder / f"{rank}.first.parquet", gives_latents(workload))
    warm.add(["first"], [first if gives_latents(workload) else ""])
    warm.close()
    with component(barrier, seconds, "fetch"):
        named = fetch()
    with component(barrier, seconds, "decode"):
        decoded = list(batches(iter(named), tuned))
    names = [name for some, _ in decoded for name in some]
    with component(barrier, seconds, "model"):
        values = [value for _, images in decoded for value in tuned.run(images)]
    del decoded
    if not gives_latents(workload):
        with component(barrier, seconds, "encode"):
            coded = [tuned.encode(value) for value in values]
        values = [str(folder / name) for name in names]
    with component(barrier, seconds, "write"):
        if not gives_latents(workload):
            for target, data in zip(values, coded, strict=True):
                Path(target).write_bytes(data)
        rows = Rows(folder / f"{rank}.parquet", gives_latents(workload))
        for name, value in zip(names, values, strict=True):
            rows.add([name], [value])
        rows.close()
    answers.put((len(names), seconds))


def main() -> None:
    workload, source, folder, count = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(PROCESSES), context.Queue()
    common = (workload, source, folder, count)
    processes = [context.Process(target=measure, args=(*common, rank, barrier, answers)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    milliseconds = {
        name: sum(seconds[name] * 1000 / images for images, seconds in found) / len(found) for name in found[0][1]
    }
    print(json.dumps({"ms": milliseconds, "images_per_s": PROCESSES * 1000 / sum(milliseconds.values())}))


if __name__ == "__main__":
    main()
