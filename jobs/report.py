"""The report of a run, made anew."""

from imagemill.jobs.console import console
from imagemill.jobs.outputs import check_exists
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.run_history import list_run_ids
from imagemill.pipeline.reports.report import make_report
from imagemill.pipeline.storage import Store


def remake(output: Store, run_id: str | None) -> None:
    """Write the report of a run, of the last one when none is named, and say where it is.

    Raises: StorageError when OUTPUT or the run is not there.
    """
    check_exists(output)
    runs = list_run_ids(output)
    if not runs:
        raise StorageError(f"{output.url} has no runs")
    console.print(output.uri(make_report(output, run_id or runs[-1])), soft_wrap=True)
