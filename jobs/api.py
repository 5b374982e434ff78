"""The Python API: what a notebook or a program calls instead of the command line. `import imagemill` exports it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imagemill.pipeline.config import RunConfig
    from imagemill.pipeline.loaded_checkpoint import LoadedCheckpoint


@dataclass(frozen=True)
class RunResult:
    """What a finished run did.

    Attributes:
        run_id: name of the run, for example 20260301T120000Z-1a2b3c.
        found: images in the input.
        done_before: images that earlier runs committed and that have not changed since.
        planned: images that this run was to process.
        ok: images that this run committed as rows.
        rejected: images that this run rejected.
        reasons: number of rejects by error class, for example {"BrokenImage": 2}.
        quality: mean of each quality column of the task over this run's rows, for example {"psnr_db": 31.2}.
        output: location of the output, as given.
        report: location of the HTML report, or None if the run wrote none.
        record: the whole content of run.json.
    """

    run_id: str
    found: int
    done_before: int
    planned: int
    ok: int
    rejected: int
    reasons: dict[str, int]
    quality: dict[str, float]
    output: str
    report: str | None
    record: dict[str, Any]


@dataclass(frozen=True)
class PlanResult:
    """What a run would do.

    Attributes:
        found: images in the input.
        ignored: number of other files in the input, by kind.
        done_before: images that are committed and have not changed since.
        rejects_waiting: rejected images that only retry_failed processes again.
        planned: images that a run would process.
        planned_bytes: total size of the files of the planned images in bytes, as far as the input lists sizes.
        paths: names of the planned images: relative to the input, behind `prefix` if there is one.
        warning: why the input may be the wrong one, or None.
        refusal: why a run would refuse this input, or None.
    """

    found: int
    ignored: dict[str, int]
    done_before: int
    rejects_waiting: int
    planned: int
    planned_bytes: int
    paths: list[str]
    warning: str | None
    refusal: str | None


def run(
    task: str,
    *,
    input: str | PathLike[str],
    output: str | PathLike[str],
    config: str | PathLike[str] | None = None,
    progress: bool = False,
    run_id: str | None = None,
    **settings: Any,
) -> RunResult:
    """Process the images of an input that are new or changed, and wait until they are committed.

    >>> result = imagemill.run("denoise", input="photos", output="clean", sigma=25, limit=100)
    >>> result.ok, result.rejected, result.report

    Args:
        task: compress, denoise, inpaint, colorize, upscale, restore or stylize.
        input: folder, shard, manifest or s3://bucket/prefix.
        output: folder or s3://bucket/prefix; created if missing.
        config: a YAML of the run, which `settings` override.
        progress: show a progress bar on stderr.
        run_id: name of the run; a new one by default.
        settings: parameters of the task (`sigma=25`, `step=40`), or keys of the run configuration (`limit=100`,
            `pool={"workers": 2}`, `retry_failed=True`); docs/config.md lists both.

    Raises:
        ConfigError: a setting is invalid, or input and output do not fit together.
        CheckpointError: the checkpoint is missing, broken or made for another task.
        StorageError: the input cannot be read or the output cannot be written.
        OutputHeld: another run is writing to the output.
        TooManyRejects: more images were rejected than max_reject_fraction allows; all rows are committed.
        RunFailed: workers or Ray could not finish; the committed rows stay, and the same call continues.
    """
    from imagemill.pipeline.run import run as run_pipeline

    with _progress_bars(progress):
        record = run_pipeline(_run_config(task, input, output, config, settings), run_id=run_id)
    names = ("run_id", "found", "done_before", "planned", "ok", "rejected", "reasons", "quality", "output", "report")
    return RunResult(**{name: record[name] for name in names}, record=record)


def plan(
    task: str,
    *,
    input: str | PathLike[str],
    output: str | PathLike[str],
    config: str | PathLike[str] | None = None,
    **settings: Any,
) -> PlanResult:
    """Return what `run` would do with the same arguments; write nothing.

    >>> imagemill.plan("denoise", input="photos", output="clean", sigma=25).planned

    Raises:
        ConfigError: a setting is invalid, or input and output do not fit together.
        CheckpointError: the checkpoint is missing, broken or made for another task.
        StorageError: the input or the output cannot be read.
    """
    from imagemill.pipeline.resolve import build_plan, check_output_task, resolve

    job = resolve(_run_config(task, input, output, config, settings))
    check_output_task(job)
    run_plan = build_plan(job)
    return PlanResult(
        found=run_plan.found,
        ignored=dict(run_plan.ignored),
        done_before=run_plan.done,
        rejects_waiting=run_plan.rejects_waiting,
        planned=len(run_plan.todo),
        planned_bytes=run_plan.bytes_todo,
        paths=run_plan.todo["rel_path"].to_pylist(),
        warning=run_plan.input_warning,
        refusal=run_plan.new_input,
    )


def load_checkpoint(
    name_or_path: str | PathLike[str],
    *,
    device: str | None = None,
    dtype: str | None = None,
    threads: int = 1,
    code: str | PathLike[str] | None = None,
) -> "LoadedCheckpoint":
    """Load a checkpoint to process single images in this process, without Ray.

    >>> denoise = imagemill.load_checkpoint("denoise-small")
    >>> clean = denoise(noisy, sigma=25)

    Args:
        name_or_path: name of a bundled checkpoint (`imagemill models` lists them), a folder or a URL.
        device: "cpu" or "cuda"; by default CUDA if available.
        dtype: "float32", "bfloat16" or "float16"; by default the fastest of the device, as in a run.
        threads: torch threads of each call on a CPU.
        code: for a checkpoint of your own network, allow it to run Python code from this folder, or "installed" code.

    Returns:
        An object to call with a NumPy array or a PIL image of any size. It returns an image of the same kind. Checkpoints
        of `compress` also have `encode` and `decode`.

    Raises:
        CheckpointError: the checkpoint is missing or broken.
    """
    from imagemill.pipeline.loaded_checkpoint import LoadedCheckpoint

    folder = None if code is None else fspath(code)
    return LoadedCheckpoint.load(fspath(name_or_path), device=device, dtype=dtype, threads=threads, code=folder)


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Show or hide progress bars inside a `with` block: a bar is shown if its logger logs at level INFO."""
    logger = logging.getLogger("imagemill.progress")
    before = logger.level
    logger.setLevel(logging.INFO if shown else logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _run_config(
    task: str,
    input: str | PathLike[str],
    output: str | PathLike[str],
    config: str | PathLike[str] | None,
    settings: dict[str, Any],
) -> "RunConfig":
    """Return the configuration of a run. Settings that are not keys of RunConfig are parameters of the task."""
    from imagemill.pipeline.config import RunConfig, read_yaml, validate

    values = read_yaml(fspath(config)) if config else {}
    run_keys = RunConfig.model_fields.keys() | RunConfig.OLD_KEYS
    keys = {key: value for key, value in settings.items() if key in run_keys}
    params = {key: value for key, value in settings.items() if key not in run_keys}
    values |= keys | {"task": task, "input": fspath(input), "output": fspath(output)}
    values["params"] = {**(values.get("params") or {}), **params}
    return validate(RunConfig, values, fspath(config) if config else "imagemill.run")
