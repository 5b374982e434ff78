"""A loop without a framework, in one process per core with one torch thread each."""

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

from bucket import members_of, shards_of
from work import PROCESSES, Rows, Tuned, arguments, batches, gives_latents, stamp


def named(workload: str, source: str, rank: int) -> Iterator[tuple[str, bytes]]:
    """Yield (name, bytes) of the images of one process."""
    if workload == "shards":
        yield from members_of(source, shards_of(source)[rank::PROCESSES])
        return
    for path in sorted(Path(source).iterdir())[rank::PROCESSES]:
        yield path.name, path.read_bytes()


def loop(workload: str, source: str, output: Path, rank: int) -> None:
    tuned = Tuned(workload)
    rows = Rows(output / f"{rank}.parquet", gives_latents(workload))
    for names, images in batches(named(workload, source, rank), tuned):
        values = tuned.run(images)
        if not gives_latents(workload):
            targets = [output / "images" / name for name in names]
            for target, image in zip(targets, values, strict=True):
                target.write_bytes(tuned.encode(image))
            values = [str(target) for target in targets]
        rows.add(names, values)
        stamp(output, len(names))
    rows.close()


if __name__ == "__main__":
    # Fork, so that torch is imported once.
    context = multiprocessing.get_context("fork")
    job = arguments()
    processes = [context.Process(target=loop, args=(*job, rank)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    raise SystemExit(max(process.exitcode for process in processes))
