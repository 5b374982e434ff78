"""Every image accounted for: what the committed parts say, checked against the plan and against the files they name."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import VerificationError
from pipeline.plan import KEYS, columns_of, part_paths, read_parts
from pipeline.schema import LatentError, parquet_bytes, part_name, unpack_latent
from pipeline.storage import Store, reason


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
    """For each image_id the row that was encoded last; by part name where two are equal."""
    order = pc.sort_indices(table, sort_keys=[("encoded_at", "descending"), ("fence", "descending"), ("part", "ascending")])
    ids = table["image_id"].take(order).to_numpy(zero_copy_only=False)
    _, first = np.unique(ids.astype(str), return_index=True)
    return table.take(order.take(pa.array(np.sort(first))))


def drop_doubles(output: Store) -> int:
    """Keep one row for each (image_id, version) of `results`; a part that held others is written anew without them.

    The new part is there before the old one goes, so no row is ever missing; after a crash in between it is done again.
    """
    keys = read_parts(output, part_paths(output, "results"), [*KEYS, "fence"])
    seen: set[tuple[str, str]] = set()
    drop: dict[str, set[tuple[str, str]]] = {}
    order = pc.sort_indices(keys, sort_keys=[("fence", "descending"), ("part", "ascending")])
    for i, v, part in zip(*columns_of(keys.take(order), [*KEYS, "part"]), strict=True):
        if (i, v) in seen:
            drop.setdefault(part, set()).add((i, v))
        seen.add((i, v))
    for part, doubles in drop.items():
        with output.fs.open(output.full(part), "rb") as f:
            table = pq.read_table(f)
        keep = table.filter(pa.array([pair not in doubles for pair in zip(*columns_of(table, KEYS), strict=True)]))
        if len(keep):
            output.write(f"results/{part_name(keep)}", parquet_bytes(keep, 9))
        output.delete(part)
    return sum(map(len, drop.values()))


def account(output: Store, todo: pa.Table, parts_before: set[str], quality: list[str]) -> Account:
    """Check that each planned image is now exactly one row or one reject, and add up the run.

    Raises: VerificationError when an image is missing.
    """
    dropped = drop_doubles(output)
    wanted = set(zip(*columns_of(todo, KEYS), strict=True))
    results = [p for p in part_paths(output, "results") if p not in parts_before]
    rejects = [p for p in part_paths(output, "rejects") if p not in parts_before]
    columns = [*KEYS, "orig_width", "orig_height", *quality]
    rows = read_parts(output, results, columns, pa.schema([(c, pa.string()) for c in columns]))
    ok = set(zip(*columns_of(rows, KEYS), strict=True)) & wanted
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
    """Check an OUTPUT against itself: parts, doubles, newest rows' files with their sha256, latents with their CRC."""
    seen = Verified()
    tables = []
    for path in part_paths(output, "results"):
        try:
            with output.fs.open(output.full(path), "rb") as f:
                tables.append(check_part(path, pq.read_table(f), seen))
        except (OSError, pa.ArrowException) as e:
            seen.problems.append(f"{path}: cannot be read: {reason(e)}")
    for path in part_paths(output, "rejects"):
        try:
            seen.rejects += len(read_parts(output, [path], KEYS))
        except (OSError, pa.ArrowException) as e:
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


def check_part(path: str, table: pa.Table, seen: Verified) -> pa.Table:
    """Check the latents of a part, and give the columns that the other checks need."""
    if "latent" in table.schema.names:
        for number, (latent, shape, crc32) in enumerate(
            zip(table["latent"], table["latent_shape"].to_pylist(), table["latent_crc32"].to_pylist(), strict=True)
        ):
            try:
                unpack_latent(latent.values.to_numpy(), shape, crc32)
                seen.latents += 1
            except LatentError as e:
                seen.problems.append(f"{path} row {number}: {e}")
    table = table.select([*KEYS, "encoded_at", "fence", "output_uri", "output_sha256"])
    return table.append_column("part", pa.array([path] * len(table), pa.string()))
