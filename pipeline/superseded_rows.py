"""Marks for images whose older output files a run may overwrite: older rows of these images no longer count."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.pipeline.output.committed_rows import match_images
from imagemill.pipeline.output.parts import SUPERSEDED, list_new_parts, list_parts, read_parts, scan_parts
from imagemill.pipeline.output.snapshot import select_newest_rows
from imagemill.pipeline.output.verify import check_file
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.plan import Plan
from imagemill.pipeline.run_record import RunRecord
from imagemill.pipeline.storage import Store

STAGES_BEFORE_WRITING = ("list", "fetch", "decode", "model")
"""Stages at which a reject has written no file."""


def mark_superseded(output: Store, images: pa.Table, record: RunRecord) -> None:
    """Mark images whose older files this run may overwrite. Call it last before the workers start.

    Args:
        output: the output of the run.
        images: table with the column image_id.
        record: names the run and its fencing token, which the file stores in the column `fence`.
    """
    tokens = pa.array([record.fence] * len(images), pa.int64())
    marks = parquet_bytes(images.append_column("fence", tokens), 9)
    output.write(f"runs/{record.run_id}/{SUPERSEDED}", marks, durable=True)


def unmark_untouched(output: Store, plan: Plan, record: RunRecord) -> None:
    """Remove the marks of images that were rejected before the run wrote a file.

    The older rows of these images keep their files: if a user replaces a good image by a broken one, the output of the good
    one stays. The mark remains if a process wrote the new file and died, and the image was rejected at the next try.
    """
    rejects = read_parts(output, list_new_parts(output, plan.parts, "rejects"), ["image_id", "stage"])
    untouched = rejects.filter(pc.is_in(rejects["stage"], pa.array(STAGES_BEFORE_WRITING)))["image_id"]
    unmarked = plan.redone.filter(pc.is_in(plan.redone["image_id"], untouched))["image_id"].combine_chunks()
    if not len(unmarked):
        return
    tables = scan_parts(output, list_parts(output, "results"), ["image_id", "fence", "output_uri", "output_sha256"])
    rows = select_newest_rows(pa.concat_tables([match_images(table, unmarked)[0] for table in tables]))
    rows = rows.filter(pc.is_valid(rows["output_uri"]))
    with ThreadPoolExecutor() as pool:
        problems = list(pool.map(partial(check_file, output), rows.to_pylist()))
    overwritten = rows["image_id"].filter(pa.array([problem is not None for problem in problems], pa.bool_()))
    unmarked = unmarked.filter(pc.invert(pc.is_in(unmarked, overwritten)))
    mark_superseded(output, plan.redone.filter(pc.invert(pc.is_in(plan.redone["image_id"], unmarked))), record)


def committed_ids(output: Store, plan: Plan, *folders: str) -> pa.ChunkedArray:
    """Return the ids of the images that were committed to these folders since the plan was made."""
    paths = [path for folder in folders for path in list_new_parts(output, plan.parts, folder)]
    return read_parts(output, paths, ["image_id"])["image_id"]
