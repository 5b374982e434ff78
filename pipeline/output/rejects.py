"""The rejects of an OUTPUT that wait to be done again."""

import numpy as np
import pyarrow as pa

from imagemill.pipeline.output.committed_rows import placed
from imagemill.pipeline.output.obsolete_rejects import are_departed
from imagemill.pipeline.output.parts import part_paths, read_parts, scan
from imagemill.pipeline.output.snapshot import newest_rows
from imagemill.pipeline.storage import Store


def waiting_rejects(output: Store, columns: list[str]) -> pa.Table:
    """The newest reject of each image that no row has made good since, be it of a mended file or of a later model.

    Images that have left their input, as far as its last run saw, wait no more.

    Raises: StorageError for a damaged part.
    """
    parts = part_paths(output, "rejects")
    rejects = newest_rows(read_parts(output, parts, list(dict.fromkeys([*columns, "image_id", "fence"]))))
    fence = np.full(len(rejects), -1, np.int64)
    for chunk in scan(output, part_paths(output, "results") if parts else [], ["image_id", "fence"]):
        table, place = placed(chunk, rejects["image_id"].combine_chunks())
        np.maximum.at(fence, place, table["fence"].fill_null(0).to_numpy())
    waits = (fence < rejects["fence"].cast(pa.int64()).to_numpy()) & ~are_departed(output, rejects)
    return rejects.filter(pa.array(waits)).select(columns)


def grouped(rejects: pa.Table) -> pa.Table:
    """Rejects by stage and class, the most frequent first: `rel_path_count`, `transient_any`, and the first of each."""
    groups = rejects.group_by(["stage", "error_class"], use_threads=False).aggregate(
        [("rel_path", "count"), ("rel_path", "first"), ("error", "first"), ("transient", "any")]
    )
    return groups.sort_by([("rel_path_count", "descending")])
