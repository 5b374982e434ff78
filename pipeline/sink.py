"""The commit: rows become a Parquet part, which appears at once or not at all."""

from socket import gethostname

import pyarrow as pa
import pyarrow.compute as pc

from imagemill.models.tasks.task import Task
from imagemill.pipeline.cluster.tally import Tally
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.lease import check_newest
from imagemill.pipeline.schema import parquet_bytes, part_name, reject_schema, result_schema
from imagemill.pipeline.worker_job import WorkerJob


class Sink:
    """`sink(rows)` writes them (schema.row_schema) as a part of `results/`, and the rejects among them as one of `rejects/`.

    A part's name comes from its rows, so a block that Ray runs twice writes the same file twice.
    """

    def __init__(self, job: WorkerJob, task: Task, tally: Tally) -> None:
        self.tally = tally
        self.output, self.level, self.fencing_token = job.output, job.compression_level, job.lineage["fence"]
        self.schemas = {"results": result_schema(task.columns, task.stores_latent), "rejects": reject_schema()}

    def __call__(self, rows: pa.Table) -> None:
        """Raises: OutputHeld when another run has the OUTPUT now; StorageError."""
        if check_newest(self.output, self.fencing_token) < self.fencing_token:
            where = f"the node {gethostname()} does not see it"
            raise StorageError(f"{self.output.url}: {where}: a cluster writes to s3:// or to a disk that all nodes mount")
        rejected = pc.is_valid(rows["stage"])
        # To filter is to copy all latents, which takes a tenth of an actor's time.
        results = rows.filter(pc.invert(rejected)) if pc.any(rejected).as_py() else rows
        for folder, part in (("rejects", rows.filter(rejected)), ("results", results)):
            if len(part):
                part = part.select(self.schemas[folder].names).cast(self.schemas[folder])
                with self.tally.time("commit"):
                    data = parquet_bytes(part, self.level)
                    self.output.write(f"{folder}/{part_name(part)}", data, durable=True)
                self.tally.add(bytes_out=len(data))
        self.tally.flush()
