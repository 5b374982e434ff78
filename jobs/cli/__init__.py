"""The commands of `imagemill`, in the groups that its help shows."""

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from imagemill.jobs.cli import models, outputs, runs
from imagemill.jobs.cli.command import Group, Quiet, Verbose, register, set_verbosity, with_options
from imagemill.jobs.cli.options import run_options, with_code
from imagemill.jobs.cli.tasks import task_command
from imagemill.models.tasks import TASKS
from imagemill.pipeline.logs import VARIABLE, configure

EXIT_CODES = (
    "Exit codes: 0 done, 1 workers or Ray failed, 2 invalid configuration, 3 more rejects than allowed, 4 another run "
    "holds OUTPUT, 5 storage error, 6 verification failed, 7 deadline reached, 8 deadline reached and a run failed, "
    "130 interrupted."
)
app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Run autoencoders over folders and buckets of images. Every image ends as one committed row or one reject with a "
    "reason.",
    epilog=EXIT_CODES,
)
PANELS: dict[str, dict[str, Callable[..., None]]] = {
    "Run": {
        **{name: task_command(task) for name, task in TASKS.items()},
        "run": with_options(runs.run, run_options()),
        "plan": with_options(runs.plan, run_options()),
        "demo": models.demo,
    },
    "Inspect": {
        "status": outputs.status,
        "verify": with_code(outputs.verify),
        "failures": outputs.failures,
        "report": with_code(outputs.report),
        "decode": with_code(outputs.decode),
    },
    "Analyse": {
        "export": with_code(outputs.export),
        "stats": with_code(outputs.stats),
        "search": with_code(outputs.search),
        "duplicates": with_code(outputs.duplicates),
        "map": with_code(outputs.map_),
    },
    "Models": {"train": models.train, "evaluate": models.evaluate},
    "Operate": {
        "nightly": runs.nightly,
        "prune": outputs.prune,
        # A job runs on the cluster that it is submitted to.
        "submit": with_options(runs.submit, run_options("address", "engine")),
    },
}
for panel, commands in PANELS.items():
    for name, function in commands.items():
        register(app, function, name, panel)
registry = typer.Typer(cls=Group, invoke_without_command=True)
registry.callback()(models.list_models)
register(registry, with_code(models.show_model), "show")
register(registry, models.import_model, "import")
app.add_typer(registry, name="models", rich_help_panel="Models", help="List tasks, architectures and checkpoints.")


def print_version(is_asked: bool) -> None:
    """Print the version and exit, if `--version` was given."""
    if is_asked:
        from imagemill import __version__

        print(f"imagemill {__version__}")
        raise typer.Exit


@app.callback()
def set_up(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=print_version, is_eager=True)
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    log_format: Annotated[
        str | None,
        typer.Option(
            "--log-format", help="Log as text, or as JSON with one object per line.", envvar=VARIABLE, metavar="text|json"
        ),
    ] = None,
) -> None:
    """Apply the options that come before the command."""
    if log_format:
        os.environ[VARIABLE] = log_format
        configure(sys.stderr)
    set_verbosity(verbose, quiet)
