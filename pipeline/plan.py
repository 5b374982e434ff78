"""What is to do: inputs minus committed outputs."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StorageError
from pipeline.schema import REFERENCE, image_id, version
from pipeline.sources.folder import list_folder, list_masked
from pipeline.storage import STORE_FAILURES, Store, reason

KEYS = ["image_id", "version"]
SUPERSEDED = "superseded.parquet"
"""Below runs/ID: images that the run was to do again, and whose older rows it may have robbed of their files."""


@dataclass
class Plan:
    """What a run would do."""

    todo: pa.Table
    """References (schema.REFERENCE) to the images to do, in the order of the listing."""
    found: int
    ignored: int
    """Files that are no images by their names."""
    done: int
    rejects_waiting: int
    """Rejects of the current version that only `--retry` does again."""
    redone: pa.Table
    """The image_id of those to do that have a row already."""
    parts: set[str] = field(default_factory=set)
    """The parts that were there when it was made."""

    @property
    def bytes_todo(self) -> int:
        return int(sum(self.todo["size"].to_pylist()))


def part_paths(output: Store, folder: str) -> list[str]:
    """The committed parts of `results` or `rejects`."""
    return sorted(e.path for e in output.entries(folder) if e.path.endswith(".parquet") and "/." not in f"/{e.path}")


def read_parts(output: Store, paths: list[str], columns: list[str]) -> pa.Table:
    """Columns of parts as one table, with the column `part` that names the file of each row.

    Raises: StorageError that names a part which is damaged.
    """

    def fetch(path: str) -> pa.Table:
        with output.fs.open(output.full(path), "rb") as f:
            return pq.read_table(f, columns=columns, page_checksum_verification=True)

    def read(path: str) -> pa.Table:
        try:
            table = output.ask(lambda: fetch(path), damage=(pa.ArrowException,))
        except (pa.ArrowException, *STORE_FAILURES) as e:
            raise StorageError(
                f"{output.uri(path)}: a damaged part ({reason(e)}): delete it, and the next run does its images again"
            ) from None
        return table.append_column("part", pa.array([path] * len(table), pa.string()))

    if not paths:
        return pa.schema([(name, pa.string()) for name in (*columns, "part")]).empty_table()
    with ThreadPoolExecutor(16) as pool:
        return pa.concat_tables(pool.map(read, paths), promote_options="default")


def newest_versions(output: Store, parts: list[str]) -> dict[str, str]:
    """The version of the newest row of each image whose output files are still that row's.

    A run that was to do an image again, and was cut off, may have overwritten its files: such a row counts no more.
    """
    rows = read_parts(output, parts, [*KEYS, "fence"])
    newest: dict[str, tuple[int, str]] = {}
    for i, v, fence in zip(*columns_of(rows, [*KEYS, "fence"]), strict=True):
        newest[i] = max(newest.get(i, (0, "")), (fence or 0, v))
    superseded = [e.path for e in output.entries("runs") if e.path.endswith(f"/{SUPERSEDED}")]
    for i, fence in zip(
        *columns_of(read_parts(output, superseded, ["image_id", "fence"]), ["image_id", "fence"]), strict=True
    ):
        if newest.get(i, (fence, ""))[0] < fence:
            del newest[i]
    return {i: v for i, (_, v) in newest.items()}


def make_plan(
    source: Store,
    output: Store,
    checkpoint_sha256: str,
    parameters: dict[str, Any],
    *,
    retry: bool = False,
    limit: int | None = None,
    masks: bool = False,
) -> Plan:
    """List, subtract what is committed, and keep the rest.

    Args:
        parameters: what changes pixels or codes, beside the checkpoint.
        retry: do rejects of the same version again; those with a transient cause always are.
        masks: NAME.mask.png is the mask of the image NAME.
    """
    references: list[dict[str, Any]] = []
    ignored = 0
    for listed in (list_masked if masks else list_folder)(source):
        if listed is None:
            ignored += 1
            continue
        references.append(
            {
                "image_id": image_id(listed.rel_path),
                "version": version(listed.etag, checkpoint_sha256, parameters),
                "source_uri": source.uri(listed.rel_path),
                "rel_path": listed.rel_path,
                "source_etag": listed.etag,
                "size": listed.size,
                "attempts": 0,
                "problem": listed.problem,
                "mask_path": listed.mask_path,
            }
        )
    results, rejects = part_paths(output, "results"), part_paths(output, "rejects")
    committed = newest_versions(output, results)
    waiting: dict[tuple[str, str], int] = {}
    attempts: dict[tuple[str, str], int] = {}
    names = [*KEYS, "transient", "attempts"]
    for i, v, transient, count in zip(*columns_of(read_parts(output, rejects, names), names), strict=True):
        attempts[i, v] = max(count, attempts.get((i, v), 0))
        if not transient:
            waiting[i, v] = count
    todo, done, rejects_waiting = [], 0, 0
    for reference in references:
        key = (reference["image_id"], reference["version"])
        if committed.get(key[0]) == key[1]:
            done += 1
        elif key in waiting and not retry:
            rejects_waiting += 1
        else:
            reference["attempts"] = attempts.get(key, 0)
            todo.append(reference)
    table = pa.Table.from_pylist(todo[:limit], REFERENCE)
    again = table.select(["image_id"]).filter(pa.array([i in committed for i in table["image_id"].to_pylist()], pa.bool_()))
    return Plan(table, len(references), ignored, done, rejects_waiting, again, {*results, *rejects})


def columns_of(table: pa.Table, names: list[str]) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def blocks(todo: pa.Table, rows: int) -> list[pa.Table]:
    """The references in slices of at most `rows`."""
    return [todo.slice(start, rows).combine_chunks() for start in range(0, len(todo), rows)]
