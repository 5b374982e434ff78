"""Commit rows: write them as a Parquet part, which appears atomically."""

from socket import gethostname
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.models.tasks.task import Task
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.lease import check_newest
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import add_latent_metadata, part_name, reject_schema, result_schema
from imagemill.pipeline.tally import Tally
from imagemill.pipeline.worker_job import WorkerJob


class Sink:
    """Writes rows (schema.row_schema) as a part of `results/`, and the rejects among them as a part of `rejects/`.

    The name of a part derives from its rows, so a block that the engine runs twice writes the same file twice.

    Args:
        job: names the output, the fencing token and the compression level.
        task: decides the columns.
        latents: digest of the checkpoint → the contract of its float latents, for the metadata of each part.
        tally: counts the bytes and seconds.
    """

    def __init__(self, job: WorkerJob, task: Task, tally: Tally, latents: dict[str, Any]) -> None:
        self.tally, self.latents = tally, latents
        self.output, self.level, self.fencing_token = job.output, job.compression_level, job.lineage["fence"]
        self.schemas = {"results": result_schema(task.columns, task.stores_latent), "rejects": reject_schema()}

    def __call__(self, rows: pa.Table) -> None:
        """Commit rows.

        Raises:
            OutputHeld: when another run holds the output.
            StorageError: when the output cannot be written, or this node does not see it.
        """
        if check_newest(self.output, self.fencing_token) < self.fencing_token:
            raise StorageError(
                f"output {self.output.url}: the node {gethostname()} does not see it. On a cluster, use s3:// or a disk "
                "that every node mounts"
            )
        rejected = pc.is_valid(rows["stage"])
        # Filtering copies all latents, a tenth of a worker's time, so it is skipped if there are no rejects.
        results = rows.filter(pc.invert(rejected)) if pc.any(rejected).as_py() else rows
        for folder, part in (("rejects", rows.filter(rejected)), ("results", results)):
            if len(part):
                part = part.select(self.schemas[folder].names).cast(self.schemas[folder])
                if self.latents and folder == "results":
                    part = add_latent_metadata(part, self.latents)
                with self.tally.time("commit"):
                    data = parquet_bytes(part, self.level)
                    self.output.write(f"{folder}/{part_name(part)}", data, durable=True)
                self.tally.add(bytes_out=len(data))
        self.tally.flush()
