"""The command of each task, generated from the parameters of the task and the options of a run."""

from collections.abc import Callable
from typing import Any

import typer

from imagemill.jobs.cli.command import with_options
from imagemill.jobs.cli.fields import command_line_type, field_option
from imagemill.jobs.cli.options import (
    FITTING_KEYS,
    Config,
    DryRun,
    InputArgument,
    OutputArgument,
    Set,
    run_config,
    run_options,
)
from imagemill.jobs.cli.runs import run_or_plan
from imagemill.models.tasks.task import Task


def task_command(task: Task) -> Callable[..., None]:
    """Build the command of a task: its help and its own options come from the task, the rest from RunConfig."""

    def command(
        context: typer.Context,
        input: InputArgument,
        output: OutputArgument,
        config: Config = None,
        dry_run: DryRun = False,
        set_: Set = None,
        **flags: Any,
    ) -> None:
        keys = {"task": task.name, "input": input, "output": output}
        run_or_plan(run_config(context, config, set_, flags, **keys), dry_run)

    command.__doc__ = task.summary
    fields = task.Params.model_fields
    parameters = [
        field_option(task.Params, key, group="params")
        for key, field in fields.items()
        if command_line_type(field.annotation) is not None
    ]
    without = [*(() if task.stores_latent else ("reconstruct",)), *(FITTING_KEYS if task.needs_lossless else ())]
    return with_options(command, [*parameters, *run_options(*without)])
