"""Every image accounted for: what the committed parts say, checked against the plan and against the files they name."""

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from models.autoencoder import LatentCoder
from models.checkpoint import CheckpointError
from models.entropy import EntropyModel
from pipeline.errors import StorageError, VerificationError
from pipeline.latents import is_coded, latent_rows, symbols_of
from pipeline.plan import KEYS, columns_of, part_paths, read_parts
from pipeline.predict import kept_model
from pipeline.schema import LatentError, parquet_bytes, part_name
from pipeline.storage import Store, reason

DOUBLES_LEVEL = 9
# What pyarrow raises for files that were damaged or are not ours.
UNREADABLE = (StorageError, OSError, pa.ArrowException, KeyError, AttributeError, TypeError, ValueError, OverflowError)


@dataclass
class Account:
    """What a run left."""

    ok: int
    rejected: int
    reasons: dict[str, int]
    doubles_dropped: int
    parquet_bytes: int
    pixels: int
    quality: dict[str, float] = field(default_factory=dict)
    """Means over the run's images."""


def newest_rows(table: pa.Table) -> pa.Table:
    """For each image_id the row of the last run, which its fence tells; clocks of machines differ."""
    order = pc.sort_indices(table, sort_keys=[("fence", "descending"), ("encoded_at", "descending"), ("part", "ascending")])
    ids = table["image_id"].take(order).to_numpy(zero_copy_only=False)
    _, first = np.unique(ids.astype(str), return_index=True)
    return table.take(order.take(pa.array(np.sort(first))))


def drop_doubles(output: Store) -> int:
    """Keep one row for each (image_id, version) of `results`, the one with the highest fence.

    What the parts with doubles hold besides is written as one new part before they go, so no row is ever missing; after a
    crash in between it is done again.
    """
    paths = part_paths(output, "results")
    keys = read_parts(output, paths, [*KEYS, "fence"])
    # A row is named by its part and its place in it.
    places = [place for path, count in row_counts(keys) for place in ((path, n) for n in range(count))]
    order = sorted(range(len(keys)), key=lambda n: (-(keys["fence"][n].as_py() or 0), places[n]))
    seen: set[tuple[str, str]] = set()
    drop: dict[str, set[int]] = {}
    pairs = list(zip(*columns_of(keys, KEYS), strict=True))
    for n in order:
        if pairs[n] in seen:
            drop.setdefault(places[n][0], set()).add(places[n][1])
        seen.add(pairs[n])
    if not drop:
        return 0
    kept = []
    for path, numbers in drop.items():
        with output.fs.open(output.full(path), "rb") as f:
            table = pq.read_table(f)
        kept.append(table.filter(pa.array([n not in numbers for n in range(len(table))])))
    rest = pa.concat_tables(kept, promote_options="default")
    written = f"results/{part_name(rest)}" if len(rest) else None
    if written:
        output.write(written, parquet_bytes(rest, DOUBLES_LEVEL))
    for path in drop.keys() - {written}:
        output.delete(path)
    return sum(map(len, drop.values()))


def row_counts(keys: pa.Table) -> list[tuple[str, int]]:
    """(part, rows) of a table that read_parts gave, in its order."""
    return list(Counter(keys["part"].to_pylist()).items())


def account(output: Store, todo: pa.Table, parts_before: set[str], quality: list[str]) -> Account:
    """Check that each planned image is now exactly one row or one reject, and add up the run.

    Raises: VerificationError when an image is missing.
    """
    dropped = drop_doubles(output)
    wanted = set(zip(*columns_of(todo, KEYS), strict=True))
    results = [p for p in part_paths(output, "results") if p not in parts_before]
    rejects = [p for p in part_paths(output, "rejects") if p not in parts_before]
    columns = [*KEYS, "orig_width", "orig_height", *quality]
    rows = read_parts(output, results, columns)
    pairs = list(zip(*columns_of(rows, KEYS), strict=True))
    rows = rows.filter(pa.array([pair in wanted for pair in pairs], pa.bool_()))
    ok = wanted.intersection(pairs)
    reasons: Counter[str] = Counter()
    rejected: set[tuple[str, str]] = set()
    failed = read_parts(output, rejects, [*KEYS, "error_class"])
    for i, v, error_class in zip(*columns_of(failed, [*KEYS, "error_class"]), strict=True):
        if (i, v) in wanted and (i, v) not in ok and (i, v) not in rejected:
            rejected.add((i, v))
            reasons[error_class] += 1
    missing = wanted - ok - rejected
    if missing:
        raise VerificationError(
            f"{output.url}: {len(missing)} of {len(wanted)} planned images have neither row nor reject: run again"
        )
    pixels = sum(w * h for w, h in zip(*columns_of(rows, ["orig_width", "orig_height"]), strict=True))
    means = {c: float(pc.mean(pc.filter(rows[c], pc.is_finite(rows[c]))).as_py() or 0) for c in quality} if len(rows) else {}
    size = sum(e.size for e in output.entries("results") if e.path in set(results))
    return Account(len(ok), len(rejected), dict(reasons.most_common()), dropped, size, pixels, means)


@dataclass
class Verified:
    """What `verify` saw."""

    images: int = 0
    rows: int = 0
    rejects: int = 0
    files: int = 0
    latents: int = 0
    problems: list[str] = field(default_factory=list)


def verify(output: Store) -> Verified:
    """Check an OUTPUT against itself: parts, doubles, newest rows' files with their sha256, latents with their CRC.

    The CRC is that of the symbols, so coded latents are decoded, with the checkpoint that lies in OUTPUT.
    """

    @cache
    def entropy_of(checkpoint_sha256: str) -> EntropyModel | None:
        try:
            model = kept_model(output, checkpoint_sha256, "cpu")
            return model.entropy if isinstance(model, LatentCoder) else None
        except CheckpointError as e:
            seen.problems.append(str(e))
            return None

    seen = Verified()
    tables = []
    for path in part_paths(output, "results"):
        try:
            with output.fs.open(output.full(path), "rb") as f:
                tables.append(check_part(path, pq.read_table(f), seen, entropy_of))
        except UNREADABLE as e:
            seen.problems.append(f"{path}: cannot be read: {reason(e)}")
    for path in part_paths(output, "rejects"):
        try:
            seen.rejects += len(read_parts(output, [path], KEYS))
        except UNREADABLE as e:
            seen.problems.append(f"{path}: cannot be read: {reason(e)}")
    if not tables:
        return seen
    rows = pa.concat_tables(tables, promote_options="default")
    seen.rows = len(rows)
    for (i, v), count in Counter(zip(*columns_of(rows, KEYS), strict=True)).items():
        if count > 1:
            seen.problems.append(f"image {i} version {v}: {count} rows")
    newest = newest_rows(rows)
    seen.images = len(newest)

    def check_file(row: dict[str, Any]) -> str | None:
        try:
            digest = hashlib.sha256(output.read(row["output_uri"])).hexdigest()
        except FileNotFoundError:
            return f"{row['output_uri']}: missing"
        except OSError as e:
            return f"{row['output_uri']}: cannot be read: {reason(e)}"
        return None if digest == row["output_sha256"] else f"{row['output_uri']}: its sha256 is not the row's"

    named = newest.filter(pc.is_valid(newest["output_uri"])).select(["output_uri", "output_sha256"]).to_pylist()
    with ThreadPoolExecutor(8) as pool:
        seen.problems += [problem for problem in pool.map(check_file, named) if problem]
    seen.files = len(named)
    return seen


def check_part(path: str, table: pa.Table, seen: Verified, entropy_of: Callable[[str], EntropyModel | None]) -> pa.Table:
    """Check a part's name, which its identities decide, and its latents; give the columns that the other checks need."""
    if path.rpartition("/")[2] != part_name(table):
        seen.problems.append(f"{path}: its name is not that of the rows it holds")
    if "latent" in table.schema.names:
        for number, row in enumerate(latent_rows(table)):
            try:
                symbols_of(row, entropy_of(row["checkpoint_sha256"]) if is_coded(row) else None)
                seen.latents += 1
            except LatentError as e:
                seen.problems.append(f"{path} row {number}: {e}")
    table = table.select([*KEYS, "encoded_at", "fence", "output_uri", "output_sha256"])
    return table.append_column("part", pa.array([path] * len(table), pa.string()))
