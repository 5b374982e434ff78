"""The command `imagemill`."""

from typing import Annotated, Any

import typer

from pipeline.errors import ConfigError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def cb(): pass


@app.command()
def train(
    config: Annotated[str, typer.Option("-c", "--config")],
    input: Annotated[list[str], typer.Option("--input")] = [],
    output: Annotated[str | None, typer.Option("--output")] = None,
    set_: Annotated[list[str], typer.Option("--set")] = [],
) -> None:
    from jobs.train import TrainConfig, train as run_training
    from pipeline.cluster import connected
    from pipeline.config import read_yaml, set_value, validate

    values = read_yaml(config)
    if input: values["input"] = input
    if output: values["output"] = output
    for a in set_: set_value(values, a)
    tc = validate(TrainConfig, values, config)
    with connected(tc.address, log_to_driver=True):
        print(run_training(tc))


def main() -> None:
    from pipeline.cluster import ensure_token
    ensure_token()
    app()
