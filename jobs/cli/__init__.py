"""The commands of `imagemill` as its help shows them: arguments to configs, and on to the job that does the work."""

import os
import sys
from typing import Annotated

import typer

from imagemill.jobs.cli import models, outputs, runs
from imagemill.pipeline.logs import VARIABLE, configure

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Batch image pipeline on Ray: every image ends as one committed row or one reject with a reason.",
    epilog="Exit codes: 0 done, 1 Ray could not finish, 2 bad configuration, 3 more rejects than allowed, 4 another writer "
    "holds OUTPUT, 5 storage, 6 verification failed, 7 stopped at the deadline, 8 the same after a "
    "run had failed, 130 interrupted.",
)
COMMANDS = {
    "Run": (runs.run, runs.plan, runs.nightly, runs.submit),
    "Tasks": (runs.compress, runs.denoise, runs.inpaint, runs.colorize, runs.stylize, runs.upscale),
    "What came out": (outputs.status, outputs.verify, outputs.failures, outputs.report, outputs.decode),
    "Latents": (outputs.export, outputs.stats, outputs.search, outputs.duplicates, outputs.map_),
    "Models": (models.train, models.evaluate, models.demo),
}
for panel, functions in COMMANDS.items():
    for function in functions:
        app.command(function.__name__.rstrip("_"), rich_help_panel=panel)(function)
registry = typer.Typer(invoke_without_command=True)
registry.callback()(models.list_models)
registry.command("show")(models.show_model)
app.add_typer(registry, name="models", rich_help_panel="Models", help="Tasks, architectures and checkpoints.")


@app.callback()
def begin(
    log_format: Annotated[
        str | None, typer.Option("--log-format", help="text, or json: an object a line", envvar=VARIABLE)
    ] = None,
) -> None:
    if log_format:
        os.environ[VARIABLE] = log_format
        configure(sys.stderr)
