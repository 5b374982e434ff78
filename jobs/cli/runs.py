"""Commands that run jobs over images, or print what a run would do."""

from pathlib import Path
from typing import Annotated, Any

import typer

from imagemill.jobs.cli.fields import given_flags
from imagemill.jobs.cli.options import Config, DryRun, Input, Json, Output, Set, merge_config, run_config
from imagemill.pipeline.config import RunConfig, read_yaml, validate
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.without_pandas import leave_out_pandas

Task = Annotated[str | None, typer.Option("--task", help="Plan this task. Required without a YAML file.", metavar="TASK")]


def run_or_plan(config: RunConfig, dry_run: bool, run_id: str | None = None) -> None:
    """Run a job, or with `dry_run` print its plan."""
    leave_out_pandas()
    if dry_run:
        from imagemill.jobs.plan import show_plan

        show_plan(config)
    else:
        from imagemill.jobs.batch import run_and_show

        run_and_show(config, run_id)


def run(
    context: typer.Context,
    config: Annotated[str, typer.Option("-c", "--config", help="Read the config of the run.", metavar="JOB.yaml")],
    input: Input = None,
    output: Output = None,
    run_id: Annotated[
        str | None, typer.Option("--run-id", help="Give the run this id, instead of a new one.", metavar="ID")
    ] = None,
    dry_run: DryRun = False,
    set_: Set = None,
    **flags: Any,
) -> None:
    """Run a job from a YAML file: process every image of INPUT that OUTPUT does not hold yet."""
    run_or_plan(run_config(context, config, set_, flags, input=input, output=output), dry_run, run_id)


def plan(
    context: typer.Context,
    config: Config = None,
    task: Task = None,
    input: Input = None,
    output: Output = None,
    as_json: Json = False,
    set_: Set = None,
    **flags: Any,
) -> None:
    """Print what a run would do, and change nothing."""
    leave_out_pandas()
    from imagemill.jobs.plan import show_plan

    show_plan(run_config(context, config, set_, flags, task=task, input=input, output=output), as_json)


def submit(
    context: typer.Context,
    config: Config = None,
    input: Input = None,
    output: Output = None,
    dashboard: Annotated[
        str | None,
        typer.Option(
            "--dashboard",
            help="Submit to the cluster with this dashboard. Default: RAY_API_SERVER_ADDRESS, then RAY_ADDRESS, then "
            "http://127.0.0.1:8265.",
            metavar="URL",
        ),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Send the token over plain HTTP to another host.")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the job to its end.")] = True,
    resume: Annotated[
        str | None, typer.Option("--resume", help="Follow a job that was submitted before.", metavar="ID")
    ] = None,
    set_: Set = None,
    **flags: Any,
) -> None:
    """Run a job or a night on a Ray cluster, follow it, and exit with its exit code."""
    from imagemill.jobs.submission import Submission, night_submission, run_submission
    from imagemill.jobs.submit import follow_to_end, submit_and_follow

    if resume:
        raise typer.Exit(follow_to_end(dashboard, insecure, resume))
    submission: Submission
    if config and "jobs" in read_yaml(config):
        options = {"input": input, "output": output} | given_flags(context, flags)
        if given := [key for key, value in options.items() if value is not None]:
            raise ConfigError(f"{config}: is the config of a night. Set {', '.join(given)} in its jobs, not as options")
        submission = night_submission(merge_config(config, {}, set_), config)
    else:
        submission = run_submission(run_config(context, config, set_, flags, input=input, output=output))
    raise typer.Exit(submit_and_follow(submission, dashboard, insecure, wait))


def nightly(
    config: Annotated[str, typer.Option("-c", "--config", help="Read the config of the night.", metavar="NIGHTLY.yaml")],
    until: Annotated[str | None, typer.Option("--until", help="End the night at this local time.", metavar="HH:MM")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all locations and print the runs of the night, but start none.")
    ] = False,
    set_: Set = None,
) -> None:
    """Run several jobs on new and changed images, one after the other, and send a notification.

    Exits with 7 if the deadline came first, and with 8 if a run failed before the deadline.
    """
    from imagemill.jobs.night_config import NightlyConfig

    leave_out_pandas()
    night = validate(NightlyConfig, merge_config(config, {"until": until}, set_), config)
    if dry_run:
        from imagemill.jobs.night_checks import show_checks

        show_checks(night, folder=Path(config).parent)
    else:
        from imagemill.jobs.nightly import show_night

        show_night(night, folder=Path(config).parent)
