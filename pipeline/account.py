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

from models.autoencoder import LatentCoder
from models.checkpoint import CheckpointError
from models.entropy import EntropyModel
from pipeline.committed import KEYS, columns_of, part_paths, placed, read_part, read_parts, scan, superseded, wanted
from pipeline.errors import StorageError, VerificationError
from pipeline.latents import is_coded, latent_rows, symbols_of
from pipeline.plan import Plan
from pipeline.predict import kept_model
from pipeline.schema import LatentError, parquet_bytes, part_name
from pipeline.snapshot import newest_rows
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


def drop_doubles(output: Store, plan: Plan, new: list[str]) -> int:
    """Keep one row for each (image_id, version) of `results`, the one with the highest fence.

    Only parts that are newer than the plan can bring a second row, and only to what it did again an older one. What the
    parts with doubles hold besides is written as one new part before they go, so no row is ever missing; after a crash in
    between it is done again.
    """
    tables = [numbered(table) for table in scan(output, new, [*KEYS, "fence"])]
    if len(plan.redone):
        again = plan.redone["image_id"].combine_chunks()
        older = sorted(path for path in plan.parts if path.startswith("results/"))
        tables += [placed(numbered(table), again)[0] for table in scan(output, older, [*KEYS, "fence"])]
    if not tables:
        return 0
    keys = pa.concat_tables(tables, promote_options="default")
    order = pc.sort_indices(keys, sort_keys=[("fence", "descending"), ("part", "ascending"), ("row", "ascending")])
    keys = keys.take(order)
    codes = [column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64) for column in keys.select(KEYS)]
    _, first = np.unique(codes[0] * (codes[1].max(initial=0) + 1) + codes[1], return_index=True)
    again_rows = keys.take(pa.array(np.setdiff1d(np.arange(len(keys)), first)))
    drop: dict[str, set[int]] = {}
    for path, row in zip(*columns_of(again_rows, ["part", "row"]), strict=True):
        drop.setdefault(path, set()).add(row)
    if not drop:
        return 0
    kept = []
    for path, numbers in drop.items():
        table = read_part(output, path, None)
        kept.append(table.filter(pa.array([n not in numbers for n in range(len(table))])))
    rest = pa.concat_tables(kept, promote_options="default")
    written = f"results/{part_name(rest)}" if len(rest) else None
    if written:
        output.write(written, parquet_bytes(rest, DOUBLES_LEVEL))
    for path in drop.keys() - {written}:
        output.delete(path)
    return sum(map(len, drop.values()))


def numbered(table: pa.Table) -> pa.Table:
    """A table of `scan` with the place of each row in its part."""
    _, starts, counts = np.unique(table["part"].to_numpy(), return_index=True, return_counts=True)
    rows = np.arange(len(table))
    for start, count in zip(starts, counts, strict=True):
        rows[start : start + count] -= start
    return table.append_column("row", pa.array(rows))


def account(output: Store, plan: Plan, quality: list[str]) -> Account:
    """Check that each planned image is now exactly one row or one reject, and add up the run.

    Raises: VerificationError when an image is missing.
    """
    ids, versions = (plan.todo[name].combine_chunks() for name in KEYS)
    dropped = drop_doubles(output, plan, new_parts(output, plan, "results"))
    results = new_parts(output, plan, "results")
    ok, rejected = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    pixels, sums, counts = 0, dict.fromkeys(quality, 0.0), Counter[str]()
    for chunk in scan(output, results, [*KEYS, "orig_width", "orig_height", *quality]):
        table, place = wanted(chunk, ids, versions)
        ok[place] = True
        pixels += int(np.sum(table["orig_width"].to_numpy().astype(np.int64) * table["orig_height"].to_numpy()))
        for name in quality:
            values = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
            values = values[np.isfinite(values)]
            sums[name] += float(values.sum())
            counts[name] += len(values)
    reasons: Counter[str] = Counter()
    for chunk in scan(output, new_parts(output, plan, "rejects"), [*KEYS, "error_class"]):
        table, place = wanted(chunk, ids, versions)
        for at, error_class in zip(place, table["error_class"].to_pylist(), strict=True):
            if not ok[at] and not rejected[at]:
                rejected[at] = True
                reasons[error_class] += 1
    missing = len(ids) - int(ok.sum()) - int(rejected.sum())
    if missing:
        raise VerificationError(
            f"{output.url}: {missing} of {len(ids)} planned images have neither row nor reject: run again"
        )
    means = {name: sums[name] / counts[name] for name in quality if counts[name]}
    size = sum(e.size for e in output.entries("results") if e.path in set(results))
    return Account(int(ok.sum()), int(rejected.sum()), dict(reasons.most_common()), dropped, size, pixels, means)


def new_parts(output: Store, plan: Plan, folder: str) -> list[str]:
    return [path for path in part_paths(output, folder) if path not in plan.parts]


@dataclass
class Verified:
    """What `verify` saw."""

    images: int = 0
    rows: int = 0
    rejects: int = 0
    files: int = 0
    latents: int = 0
    waiting: int = 0
    """Images whose files a run that was cut off may have overwritten; the next one does them again."""
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
            tables.append(check_part(path, read_part(output, path, None), seen, entropy_of))
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
    names_files = newest.filter(pc.is_valid(newest["output_uri"]))
    ids, fences = names_files["image_id"].combine_chunks(), names_files["fence"].fill_null(0).to_numpy()
    later = np.zeros(len(ids), bool)
    try:
        later = superseded(output, ids, fences)
    except UNREADABLE as e:
        seen.problems.append(reason(e))
    seen.waiting = int(later.sum())

    def check_file(row: dict[str, Any]) -> str | None:
        try:
            digest = hashlib.sha256(output.read(row["output_uri"])).hexdigest()
        except FileNotFoundError:
            return f"{row['output_uri']}: missing"
        except OSError as e:
            return f"{row['output_uri']}: cannot be read: {reason(e)}"
        return None if digest == row["output_sha256"] else f"{row['output_uri']}: its sha256 is not the row's"

    named = names_files.filter(pa.array(~later)).select(["output_uri", "output_sha256"]).to_pylist()
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
