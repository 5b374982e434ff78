"""Commands that do work over images, or say what would be done."""

from pathlib import Path
from typing import Annotated

import typer

from imagemill.jobs.cli.options import (
    AcceptDamaged,
    Address,
    AllowNewInput,
    Checkpoint,
    Config,
    Input,
    InputArgument,
    Limit,
    Output,
    OutputArgument,
    Reconstruct,
    Retry,
    Set,
    effective,
    merged,
)
from imagemill.pipeline.config import RunConfig, validate


def batch(config: RunConfig, run_id: str | None = None) -> None:
    from imagemill.jobs.batch import run_and_show

    run_and_show(config, run_id)


def run(
    config: Annotated[str, typer.Option("-c", "--config", help="YAML of the run", metavar="JOB.yaml")],
    input: Input = None,
    output: Output = None,
    limit: Limit = None,
    retry: Retry = None,
    allow_new_input: AllowNewInput = None,
    accept_damaged: AcceptDamaged = None,
    reconstruct: Reconstruct = None,
    address: Address = None,
    run_id: Annotated[str | None, typer.Option("--run-id", help="what the run is called; a new name when absent")] = None,
    set_: Set = None,
) -> None:
    """Run a job: list INPUT, subtract what OUTPUT already holds, do the rest."""
    flags = {"input": input, "output": output, "limit": limit, "retry_failed": retry, "reconstruct": reconstruct}
    flags |= {"allow_new_input": allow_new_input, "accept_damaged": accept_damaged}
    batch(effective(config, set_, **flags, address=address), run_id)


def submit(
    config: Config = None,
    input: Input = None,
    output: Output = None,
    limit: Limit = None,
    retry: Retry = None,
    allow_new_input: AllowNewInput = None,
    accept_damaged: AcceptDamaged = None,
    reconstruct: Reconstruct = None,
    address: Annotated[
        str | None,
        typer.Option("--address", help="the cluster's dashboard; RAY_API_SERVER_ADDRESS, RAY_ADDRESS", metavar="URL"),
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="send the token over plain http to another host")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="follow the job to its end")] = True,
    resume: Annotated[
        str | None, typer.Option("--resume", help="follow a job that was submitted before", metavar="ID")
    ] = None,
    set_: Set = None,
) -> None:
    """Run a job on a Ray cluster, follow it, and end with its exit code."""
    from imagemill.jobs.submit import follow_to_end, submit_and_follow

    if resume:
        code = follow_to_end(address, insecure, resume)
    else:
        flags = {"input": input, "output": output, "limit": limit, "retry_failed": retry, "reconstruct": reconstruct}
        flags |= {"allow_new_input": allow_new_input, "accept_damaged": accept_damaged}
        code = submit_and_follow(effective(config, set_, **flags), address, insecure, wait)
    raise typer.Exit(code)


def plan(
    config: Config = None,
    task: Annotated[str | None, typer.Option("--task", help="what to do, where no YAML says it")] = None,
    input: Input = None,
    output: Output = None,
    limit: Limit = None,
    retry: Retry = None,
    allow_new_input: AllowNewInput = None,
    accept_damaged: AcceptDamaged = None,
    reconstruct: Reconstruct = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Say what a run would do, and change nothing."""
    from imagemill.jobs.batch import show_plan

    flags = {"input": input, "output": output, "limit": limit, "retry_failed": retry, "reconstruct": reconstruct}
    flags |= {"allow_new_input": allow_new_input, "accept_damaged": accept_damaged}
    show_plan(effective(config, set_, task=task, **flags, address=address))


def nightly(
    config: Annotated[str, typer.Option("-c", "--config", help="YAML of the night", metavar="NIGHTLY.yaml")],
    until: Annotated[str | None, typer.Option("--until", help="local time at which the night ends", metavar="HH:MM")] = None,
    set_: Set = None,
) -> None:
    """Run several jobs in order over what is new or changed; exit 7 when the deadline came first, 8 if a run failed too."""
    from imagemill.jobs.nightly import NightlyConfig, show_night

    show_night(validate(NightlyConfig, merged(config, set_, {"until": until}), config), folder=Path(config).parent)


def compress(
    input: InputArgument,
    output: OutputArgument,
    step: Annotated[float | None, typer.Option("--step", help="quantiser step: larger is smaller and worse")] = None,
    coding: Annotated[str | None, typer.Option("--coding", help="plain (lists of numbers) or coded (smaller)")] = None,
    reconstruct: Reconstruct = None,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    retry: Retry = None,
    allow_new_input: AllowNewInput = None,
    accept_damaged: AcceptDamaged = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Images to latent codes in Parquet."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry_failed": retry, "reconstruct": reconstruct, "address": address}
    flags |= {"allow_new_input": allow_new_input, "accept_damaged": accept_damaged}
    params = {"step": step, "coding": coding}
    batch(effective(config, set_, task="compress", input=input, output=output, params=params, **flags))


def denoise(
    input: InputArgument,
    output: OutputArgument,
    sigma: Annotated[
        float | None, typer.Option("--sigma", help="noise level in 8-bit levels; estimated when absent")
    ] = None,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    retry: Retry = None,
    allow_new_input: AllowNewInput = None,
    accept_damaged: AcceptDamaged = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Noisy photos to clean ones."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry_failed": retry, "address": address}
    flags |= {"allow_new_input": allow_new_input, "accept_damaged": accept_damaged}
    batch(effective(config, set_, task="denoise", input=input, output=output, params={"sigma": sigma}, **flags))


def inpaint(
    input: InputArgument,
    output: OutputArgument,
    missing: Annotated[
        str | None, typer.Option("--missing", help="what says what is missing: file (NAME.mask.png), alpha, key, red, …")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="colour of what is missing, #rrggbb", metavar="COLOUR")] = None,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    retry: Retry = None,
    allow_new_input: AllowNewInput = None,
    accept_damaged: AcceptDamaged = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Fill holes, scratches, lost pixels or one missing colour plane; known pixels stay bit-identical."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry_failed": retry, "address": address}
    flags |= {"allow_new_input": allow_new_input, "accept_damaged": accept_damaged}
    params = {"missing": missing or ("key" if key else None), "key": key}
    batch(effective(config, set_, task="inpaint", input=input, output=output, params=params, **flags))


def colorize(
    input: InputArgument,
    output: OutputArgument,
    saturation: Annotated[float | None, typer.Option("--saturation", help="factor of the predicted colours")] = None,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    retry: Retry = None,
    allow_new_input: AllowNewInput = None,
    accept_damaged: AcceptDamaged = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Gray photos to coloured ones whose luma is exactly the same."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry_failed": retry, "address": address}
    flags |= {"allow_new_input": allow_new_input, "accept_damaged": accept_damaged}
    batch(effective(config, set_, task="colorize", input=input, output=output, params={"saturation": saturation}, **flags))


def upscale(
    input: InputArgument,
    output: OutputArgument,
    checkpoint: Checkpoint = None,
    limit: Limit = None,
    retry: Retry = None,
    allow_new_input: AllowNewInput = None,
    accept_damaged: AcceptDamaged = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Images at twice their width and height."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry_failed": retry, "address": address}
    flags |= {"allow_new_input": allow_new_input, "accept_damaged": accept_damaged}
    batch(effective(config, set_, task="upscale", input=input, output=output, **flags))


def stylize(
    input: InputArgument,
    output: OutputArgument,
    style: Annotated[
        list[str] | None, typer.Option("--style", help="style image, file or s3:// URL; repeat it to mix several")
    ] = None,
    style_weight: Annotated[
        list[float] | None, typer.Option("--style-weight", help="of the styles, one each; equal when absent")
    ] = None,
    method: Annotated[str | None, typer.Option("--method", help="adain (one pass) or gatys (optimises the image)")] = None,
    strength: Annotated[float | None, typer.Option("--strength", help="adain: 0 is the image, 1 its full restyling")] = None,
    size: Annotated[int | None, typer.Option("--size", help="reduce larger images to this long side, in pixels")] = None,
    preserve_color: Annotated[
        bool | None, typer.Option("--preserve-color", help="keep the image's colours, transfer luminance alone")
    ] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="gatys: weight of the content loss")] = None,
    beta: Annotated[float | None, typer.Option("--beta", help="gatys: weight of the style loss")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="gatys: steps of the optimiser")] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option("--checkpoint", help="bundled name, folder or URL; for gatys vgg19-dcbb9e9d.pth or random as well"),
    ] = None,
    limit: Limit = None,
    retry: Retry = None,
    allow_new_input: AllowNewInput = None,
    accept_damaged: AcceptDamaged = None,
    config: Config = None,
    address: Address = None,
    set_: Set = None,
) -> None:
    """Photos painted in the style of a picture, or of several."""
    flags = {"checkpoint": checkpoint, "limit": limit, "retry_failed": retry, "address": address}
    flags |= {"allow_new_input": allow_new_input, "accept_damaged": accept_damaged}
    params = {
        "style": style or None,
        "style_weights": style_weight or None,
        "method": method,
        "strength": strength,
        "size": size,
        "preserve_color": preserve_color,
        "alpha": alpha,
        "beta": beta,
        "steps": steps,
    }
    batch(effective(config, set_, task="stylize", input=input, output=output, params=params, **flags))
