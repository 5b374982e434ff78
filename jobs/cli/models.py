"""Commands that make, measure and show models."""

from typing import Annotated

import typer

from imagemill.jobs.cli.options import Address, Checkpoint, Json, Output, Overwrite, Set, Storage, merged, storage_of


def train(
    config: Annotated[str, typer.Option("-c", "--config", help="YAML of the training", metavar="TRAIN.yaml")],
    input: Annotated[
        list[str] | None, typer.Option("--input", help="folder or bucket of clean images; may be repeated")
    ] = None,
    output: Output = None,
    address: Address = None,
    overwrite: Overwrite = False,
    set_: Set = None,
) -> None:
    """Train a checkpoint; the same command resumes what it left."""
    from imagemill.jobs.train import show_training

    show_training(merged(config, set_, {"input": input, "output": output, "address": address}), config, overwrite)


def evaluate(
    config: Annotated[
        str | None, typer.Option("-c", "--config", help="YAML of the evaluation", metavar="EVALUATE.yaml")
    ] = None,
    task: Annotated[str | None, typer.Option("--task", help="what to measure, where no YAML says it")] = None,
    input: Annotated[str | None, typer.Option("--input", help="folder or bucket of clean images")] = None,
    output: Annotated[str | None, typer.Option("--output", help="folder for evaluation.json and evaluation.png")] = None,
    checkpoint: Checkpoint = None,
    at: Annotated[
        list[float] | None, typer.Option("--at", help="noise level, quantiser step, alpha; may be repeated")
    ] = None,
    update_card: Annotated[bool, typer.Option("--update-card", help="write the figures into the checkpoint's card")] = False,
    overwrite: Overwrite = False,
    set_: Set = None,
) -> None:
    """Measure a model through the whole product, beside what can be had without it."""
    from imagemill.jobs.evaluate import show_evaluation

    flags = {"task": task, "input": input, "output": output, "checkpoint": checkpoint, "at": at}
    show_evaluation(merged(config, set_, flags), config or "command line", update_card, overwrite)


def list_models(context: typer.Context, as_json: Json = False) -> None:
    """List the tasks, the architectures and the bundled checkpoints."""
    from imagemill.jobs.registry import show_registry

    if context.invoked_subcommand is None:
        show_registry(as_json)


def show_model(
    checkpoint: Annotated[str, typer.Argument(metavar="NAME|FOLDER|URL", help="bundled name, folder or URL")],
    as_json: Json = False,
    config: Storage = None,
) -> None:
    """Print a checkpoint's card, its layers, and what was measured on which set."""
    from imagemill.jobs.registry import show_checkpoint

    show_checkpoint(checkpoint, storage_of(config, checkpoint), as_json)


def demo(output: Annotated[str, typer.Argument(metavar="FOLDER")] = "demo", overwrite: Overwrite = False) -> None:
    """Run every task on photos that scikit-image carries, and draw what came out."""
    from imagemill.jobs.demo import run_demo

    run_demo(output, overwrite)
