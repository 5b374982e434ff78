"""Commands that train, evaluate and show models, and the demo."""

from typing import Annotated

import typer

from imagemill.jobs.cli.options import Address, Checkpoint, Json, Output, Overwrite, Set, Storage, merge_config, storage_of


def train(
    config: Annotated[str, typer.Option("-c", "--config", help="Read the config of the training.", metavar="TRAIN.yaml")],
    input: Annotated[
        list[str] | None,
        typer.Option("--input", help="Train on the clean images in this folder or bucket. Repeatable.", metavar="INPUT"),
    ] = None,
    output: Output = None,
    address: Address = None,
    overwrite: Overwrite = False,
    set_: Set = None,
) -> None:
    """Train a checkpoint. The same command resumes an interrupted training."""
    from imagemill.jobs.train import show_training

    flags = {"input": input or None, "output": output, "address": address}
    show_training(merge_config(config, flags, set_), config, overwrite)


def evaluate(
    config: Annotated[
        str | None, typer.Option("-c", "--config", help="Read the config of the evaluation.", metavar="EVALUATE.yaml")
    ] = None,
    task: Annotated[
        str | None, typer.Option("--task", help="Evaluate this task. Required without a YAML file.", metavar="TASK")
    ] = None,
    input: Annotated[
        str | None, typer.Option("--input", help="Evaluate on the clean images in this folder or bucket.", metavar="INPUT")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", help="Write evaluation.json and evaluation.png to this folder.", metavar="FOLDER"),
    ] = None,
    checkpoint: Checkpoint = None,
    at: Annotated[
        list[float] | None,
        typer.Option("--at", help="Evaluate at this noise level, quantiser step or alpha. Repeatable.", metavar="NUMBER"),
    ] = None,
    update_card: Annotated[
        bool, typer.Option("--update-card", help="Write the metrics to the card of the checkpoint.")
    ] = False,
    overwrite: Overwrite = False,
    set_: Set = None,
) -> None:
    """Evaluate a model end to end and compare it with simple baselines."""
    from imagemill.jobs.evaluate import show_evaluation

    flags = {"task": task, "input": input, "output": output, "checkpoint": checkpoint, "at": at or None}
    show_evaluation(merge_config(config, flags, set_), config or "command line", update_card, overwrite)


def list_models(context: typer.Context, as_json: Json = False) -> None:
    """List tasks, architectures and bundled checkpoints."""
    from imagemill.jobs.registry import show_registry

    if context.invoked_subcommand is None:
        show_registry(as_json)


def show_model(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A bundled name, a folder or a URL.")],
    as_json: Json = False,
    config: Storage = None,
) -> None:
    """Show the card, the layers and the metrics of a checkpoint."""
    from imagemill.jobs.registry import show_checkpoint

    show_checkpoint(checkpoint, storage_of(config, checkpoint), as_json)


def demo(
    output: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Write inputs, outputs and pictures to this folder.")
    ] = "demo",
    overwrite: Overwrite = False,
) -> None:
    """Run every task on sample photos and draw the results."""
    from imagemill.jobs.demo import run_demo

    run_demo(output, overwrite)
