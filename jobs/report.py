"""Write the report of a run again, or as a page that can leave the output."""

from imagemill.jobs.console import print_text
from imagemill.jobs.outputs import check_output
from imagemill.jobs.result_file import result_file
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.run_history import list_run_ids
from imagemill.pipeline.reports.report import read_report, rewrite_report
from imagemill.pipeline.storage import Store


def show_report(output: Store, run_id: str | None, page: str | None = None, overwrite: bool = False) -> None:
    """Write the report of a run, the newest by default, and print its location.

    Args:
        output: the output of the run.
        run_id: the run.
        page: local HTML file for the report. The output is only read then.
        overwrite: replace a file that imagemill did not write.

    Raises:
        StorageError: when the output or the run does not exist, or the output cannot be read.
        ConfigError: when the page cannot be written.
    """
    target = result_file(page, overwrite)
    check_output(output)
    runs = list_run_ids(output)
    if not runs:
        raise StorageError(f"{output.url}: has no runs")
    run_id = run_id or runs[-1]
    if target:
        html = read_report(output, run_id)
        target.write(html)
        print_text(f"{target.path}: run {run_id}, {len(html) / 1e6:.1f} MB")
    else:
        print_text(output.uri(rewrite_report(output, run_id)))
