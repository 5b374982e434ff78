"""A torch DataLoader tuned for CPUs: its workers also run the model, and the main process writes Parquet.

With `--model main`, workers decode, batches arrive as bytes, the main process runs the model, and threads encode.
"""

import sys
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from bucket import members_of, shards_of
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from work import PROCESSES, Rows, Tuned, arguments, batches, gives_latents, stamp

# Batches of the model per message, because messages between processes cost time.
AT_ONCE = 32


class Share(IterableDataset):
    """The images of a worker as decoded batches, or with `runs_model` as results."""

    def __init__(self, workload: str, source: str, output: Path, runs_model: bool) -> None:
        self.workload, self.source, self.output, self.runs_model = workload, source, output, runs_model

    def named(self) -> Iterator[tuple[str, bytes]]:
        worker = get_worker_info()
        share = slice(worker.id, None, worker.num_workers)
        if self.workload == "shards":
            yield from members_of(self.source, shards_of(self.source)[share])
            return
        for path in sorted(Path(self.source).iterdir())[share]:
            yield path.name, path.read_bytes()

    def __iter__(self) -> Iterator[tuple[list[str], Any]]:
        tuned = Tuned(self.workload)
        if not self.runs_model:
            for names, images in batches(self.named(), tuned):
                yield names, np.stack(images)
            return
        names: list[str] = []
        values: list = []
        for some, images in batches(self.named(), tuned):
            names += some
            values += finished(self.workload, self.output, some, tuned.run(images), tuned)
            stamp(self.output, len(some))
            if len(names) >= AT_ONCE:
                yield self.message(names, values)
                names, values = [], []
        if names:
            yield self.message(names, values)

    def message(self, names: list[str], values: list) -> tuple[list[str], Any]:
        """Return the symbols as one array, which is passed in shared memory."""
        return names, np.stack(values) if gives_latents(self.workload) else values


def finished(workload: str, output: Path, names: list[str], values: list[np.ndarray], tuned: Tuned) -> list:
    """Return symbols unchanged, and images as the paths they were written to."""
    if gives_latents(workload):
        return values
    targets = [output / "images" / name for name in names]
    for target, image in zip(targets, values, strict=True):
        target.write_bytes(tuned.encode(image))
    return [str(target) for target in targets]


def model_in_workers(workload: str, output: Path, loader: DataLoader, rows: Rows) -> None:
    for names, values in loader:
        rows.add(names, list(values.numpy()) if gives_latents(workload) else values)


def model_in_main(workload: str, output: Path, loader: DataLoader, rows: Rows) -> None:
    tuned = Tuned(workload)
    writing: deque[tuple[list[str], Future[list]]] = deque()
    with ThreadPoolExecutor(PROCESSES) as threads:
        for names, images in loader:
            values = tuned.run(list(images.numpy()))
            stamp(output, len(names))
            writing.append((names, threads.submit(finished, workload, output, names, values, tuned)))
            if len(writing) > 2 * PROCESSES:
                first, values = writing.popleft()
                rows.add(first, values.result())
        for names, values in writing:
            rows.add(names, values.result())


def main() -> None:
    in_main = sys.argv[4:] == ["--model", "main"]
    workload, source, output = arguments()
    rows = Rows(output / "rows.parquet", gives_latents(workload))
    loader = DataLoader(Share(workload, source, output, not in_main), None, num_workers=PROCESSES, prefetch_factor=4)
    (model_in_main if in_main else model_in_workers)(workload, output, loader, rows)
    rows.close()


if __name__ == "__main__":
    main()
