"""Write the report of a run again."""

from imagemill.jobs.console import print_text
from imagemill.jobs.outputs import check_output
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.run_history import list_run_ids
from imagemill.pipeline.reports.report import rewrite_report
from imagemill.pipeline.storage import Store


def show_report(output: Store, run_id: str | None) -> None:
    """Write the report of a run, the newest by default, and print its location.

    Raises:
        StorageError: when the output or the run does not exist.
    """
    check_output(output)
    runs = list_run_ids(output)
    if not runs:
        raise StorageError(f"{output.url}: has no runs")
    print_text(output.uri(rewrite_report(output, run_id or runs[-1])))
