"""The account of a run: check that each planned image is exactly one committed row or one reject."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.errors import VerificationError
from imagemill.pipeline.output.committed_rows import match_images, match_versions
from imagemill.pipeline.output.part_replacement import replace_parts
from imagemill.pipeline.output.parts import KEYS, columns_as_lists, list_new_parts, read_part, scan_parts
from imagemill.pipeline.plan import Plan
from imagemill.pipeline.schema import FITTING, SOURCE, concat_parts
from imagemill.pipeline.storage import Store

DOUBLES_LEVEL = 9
"""zstd level of a part that replaces parts with duplicate rows."""


@dataclass
class Account:
    """Counts of the rows and rejects that a run committed."""

    ok: int
    rejected: int
    rejected_again: int
    """Number of rejects of images that earlier runs had rejected too."""
    reasons: dict[str, int]
    """Error class → number of rejects."""
    doubles_dropped: int
    """Number of duplicate rows that were removed."""
    parquet_bytes: int
    pixels: int
    """Pixels of the source images, after they were resized and cropped."""
    frames_left_out: int
    """Frames and pages after the first one of each file; only the first one is processed."""
    damaged: int
    """Rows of partly damaged images, which `accept_damaged` accepted."""
    quality: dict[str, float] = field(default_factory=dict)
    """Column → mean over the images of the run."""


def drop_duplicates(output: Store, plan: Plan, new: list[str]) -> int:
    """Keep one row for each (image_id, version) of `results`: the row with the highest fencing token.

    Duplicates arise in three ways: an engine ran a block twice, the plan processed an image again, or a run was killed
    before it removed its duplicates. All other rows of the parts with duplicates become one new part.

    Args:
        output: the output of the run.
        plan: the plan of the run.
        new: paths of the parts that are newer than the plan.

    Returns:
        The number of rows that were removed.
    """
    tables = [number_rows(table) for table in scan_parts(output, new, [*KEYS, "fence"])]
    repeated = pa.concat_tables([plan.redone, plan.doubled])["image_id"].combine_chunks()
    if len(repeated):
        older = sorted(path for path in plan.parts if path.startswith("results/"))
        tables += [match_images(number_rows(table), repeated)[0] for table in scan_parts(output, older, [*KEYS, "fence"])]
    if not tables:
        return 0
    keys = pa.concat_tables(tables, promote_options="default")
    order = pc.sort_indices(keys, sort_keys=[("fence", "descending"), ("part", "ascending"), ("row", "ascending")])
    keys = keys.take(order)
    codes = [column.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64) for column in keys.select(KEYS)]
    _, first_rows = np.unique(codes[0] * (codes[1].max(initial=0) + 1) + codes[1], return_index=True)
    duplicates = keys.take(pa.array(np.setdiff1d(np.arange(len(keys)), first_rows)))
    duplicate_rows: dict[str, set[int]] = {}
    for path, row in zip(*columns_as_lists(duplicates, ["part", "row"]), strict=True):
        duplicate_rows.setdefault(path, set()).add(row)
    if not duplicate_rows:
        return 0
    remaining = []
    for path, numbers in duplicate_rows.items():
        table = read_part(output, path, None)
        remaining.append(table.filter(pa.array([n not in numbers for n in range(len(table))])))
    replace_parts(output, "results", set(duplicate_rows), concat_parts(remaining), DOUBLES_LEVEL)
    return sum(map(len, duplicate_rows.values()))


def number_rows(table: pa.Table) -> pa.Table:
    """Return a table of scan_parts with the column `row`: the index of each row in its part."""
    _, starts, counts = np.unique(table["part"].to_numpy(), return_index=True, return_counts=True)
    rows = np.arange(len(table))
    for start, count in zip(starts, counts, strict=True):
        rows[start : start + count] -= start
    return table.append_column("row", pa.array(rows))


def account(output: Store, plan: Plan, quality: list[str]) -> Account:
    """Check that each planned image is exactly one row or one reject, and count the rows and rejects.

    Args:
        output: the output of the run.
        plan: the plan of the run.
        quality: columns whose means are computed.

    Raises:
        VerificationError: when a planned image has neither a row nor a reject.
    """
    ids, versions = (plan.todo[name].combine_chunks() for name in KEYS)
    duplicates_dropped = drop_duplicates(output, plan, list_new_parts(output, plan.parts, "results"))
    results = list_new_parts(output, plan.parts, "results")
    ok, rejected = np.zeros(len(ids), bool), np.zeros(len(ids), bool)
    pixels, frames_left_out, damaged, sums, counts = 0, 0, 0, dict.fromkeys(quality, 0.0), Counter[str]()
    # Duplicates may come from parts of an older version of imagemill, which lack the later columns.
    sizes = [f"{kind}_{side}" for side in ("width", "height") for kind in ("crop", "resized", "orig")]
    columns = [*KEYS, *sizes, "frames", "damaged", *quality]
    for chunk in scan_parts(output, results, columns, absent=pa.schema([*SOURCE, *FITTING])):
        table, indices = match_versions(chunk, ids, versions)
        ok[indices] = True
        width, height = (pc.coalesce(*table.select(sizes[n : n + 3]).columns).to_numpy().astype(np.int64) for n in (0, 3))
        pixels += int(np.sum(width * height))
        frames_left_out += int(pc.sum(pc.subtract(table["frames"].fill_null(1), 1)).as_py() or 0)
        damaged += int(pc.sum(table["damaged"]).as_py() or 0)
        for name in quality:
            values = table[name].to_numpy(zero_copy_only=False).astype(np.float64)
            values = values[np.isfinite(values)]
            sums[name] += float(values.sum())
            counts[name] += len(values)
    reasons: Counter[str] = Counter()
    for chunk in scan_parts(output, list_new_parts(output, plan.parts, "rejects"), [*KEYS, "error_class"]):
        table, indices = match_versions(chunk, ids, versions)
        for index, error_class in zip(indices, table["error_class"].to_pylist(), strict=True):
            if not ok[index] and not rejected[index]:
                rejected[index] = True
                reasons[error_class] += 1
    missing = len(ids) - int(ok.sum()) - int(rejected.sum())
    if missing:
        raise VerificationError(
            f"{output.url}: {missing} of {len(ids)} planned images have neither a row nor a reject. Run the command again"
        )
    means = {name: sums[name] / counts[name] for name in quality if counts[name]}
    result_paths = set(results)
    size = sum(e.size for e in output.entries("results") if e.path in result_paths)
    return Account(
        ok=int(ok.sum()),
        rejected=int(rejected.sum()),
        rejected_again=int((rejected & (plan.todo["attempts"].to_numpy() > 0)).sum()),
        reasons=dict(reasons.most_common()),
        doubles_dropped=duplicates_dropped,
        parquet_bytes=size,
        pixels=pixels,
        frames_left_out=frames_left_out,
        damaged=damaged,
        quality=means,
    )
