"""Options of earlier versions still work, and only options that are given override a YAML file."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from imagemill.jobs.cli import app
from imagemill.jobs.cli.command import with_current_names
from imagemill.models.tasks import TASKS
from imagemill.pipeline.config import RunConfig

COMMAND = typer.main.get_command(app)
SHARED = "-c job.yaml --limit 3 --allow-new-input --accept-damaged --set a=1 --set b.c=2"
PLACES = "--input in --output out"
EARLIER = {
    "compress in out --step 30 --coding coded --reconstruct --checkpoint x --retry --address auto": SHARED,
    "denoise in out --sigma 3.5 --checkpoint x --retry --address auto": SHARED,
    "inpaint in out --missing red --key #00ff00 --checkpoint x --retry --address auto": SHARED,
    "colorize in out --saturation 1.5 --checkpoint x --retry --address auto": SHARED,
    "upscale in out --checkpoint x --retry --address auto": SHARED,
    "stylize in out --style a --style b --style-weight 1 --style-weight 2 --method gatys --strength 0.5 --size 99 "
    "--preserve-color --alpha 1 --beta 2 --steps 3 --checkpoint random --retry --address auto": SHARED,
    "run --retry --reconstruct --address auto --run-id 20260101T000000Z-abcdef": f"{SHARED} {PLACES}",
    "plan --task denoise --retry --reconstruct --address auto": f"{SHARED} {PLACES}",
    "submit --retry --reconstruct --address http://127.0.0.1:8265 --insecure --no-wait --resume x": f"{SHARED} {PLACES}",
    "nightly -c night.yaml --until 06:00 --set a=1": "",
    "status out -c x.yaml": "",
    "verify out --config x.yaml": "",
    "failures out --by-reason --export x.csv --overwrite -c x.yaml": "",
    "report out --run x -c x.yaml": "",
    "decode out dest --where x --overwrite -c x.yaml": "",
    "export out dest --run x --as-of 2026-01-01 --model m --columns a,b --pool gem --format npy -c x.yaml": "",
    "export out dest --format npz --scaled --overwrite --layout shapes": "",
    "stats out --run x --against y -c x.yaml": "",
    "search out --image x -k 5 --sheet x.png --overwrite -c x.yaml": "",
    "search out --id x": "",
    "duplicates out --threshold 0.9 --export x.csv --sheet x.png --overwrite -c x.yaml": "",
    "map out page.html --method umap --overwrite -c x.yaml": "",
    "train -c t.yaml --input a --input b --output out --address auto --overwrite --set a=1": "",
    "evaluate -c e.yaml --task denoise --input in --output out --checkpoint x --at 1 --at 2 --update-card --overwrite "
    "--set a=1": "",
    "models": "",
    "demo folder --overwrite": "",
}
"""Command lines of version 0.1 with all of its options."""


def parse(line: str) -> dict[str, Any]:
    """Return the parameters that a command line gives.

    Raises:
        UsageError: when click rejects the command line.
    """
    arguments = shlex.split(line)
    context = COMMAND.make_context("imagemill", [*arguments])
    name, command, rest = COMMAND.resolve_command(context, arguments)
    return command.make_context(name, rest, parent=context).params


@pytest.mark.parametrize("line", EARLIER, ids=lambda line: line.split()[0])
def test_options_of_version_0_1_work(line: str) -> None:
    """Every option of version 0.1 is accepted and sets its parameter."""
    line = f"{line} {EARLIER[line]}"
    values = {str(value) for value in parse(line).values() if value is not None}
    for word in shlex.split(line)[1:]:
        assert word.startswith("-") or any(word in value for value in values), word


def test_renamed_options_set_new_parameters() -> None:
    assert parse("export out dest --run x")["run_id"] == "x"
    assert parse("export out dest --run=x")["run_id"] == "x"
    assert parse("submit --address http://h:1")["dashboard"] == "http://h:1"
    assert parse("run -c x --address auto")["address"] == "auto"
    assert parse("denoise --retry Photos out")["retry_failed"] == "*"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("in out --retry-failed", "in out --retry-failed=*"),
        ("--retry-failed in out", "--retry-failed=* in out"),
        ("in out --retry-failed TooManyPixels", "in out --retry-failed=TooManyPixels"),
        ("in out --retry-failed=TooManyPixels", "in out --retry-failed=TooManyPixels"),
        ("--retry-failed --limit 3 in out", "--retry-failed=* --limit 3 in out"),
        ("in out --retry", "in out --retry-failed=*"),
        ("--run 3 -- --run 4", "--run-id 3 -- --run 4"),
        ("--run=3", "--run-id=3"),
    ],
)
def test_with_current_names_rewrites_arguments(line: str, expected: str) -> None:
    renamed = {"--retry": "--retry-failed=*", "--run": "--run-id"}
    assert with_current_names(line.split(), renamed) == expected.split()


@pytest.fixture
def config_of(monkeypatch: pytest.MonkeyPatch, imagemill):
    """Return a function that calls a command and returns the config it runs."""
    configs: list[RunConfig] = []
    monkeypatch.setattr("imagemill.jobs.batch.run_and_show", lambda config, run_id: configs.append(config))

    def call(*arguments: object) -> RunConfig:
        code, _, err = imagemill(*arguments)
        assert code == 0, err
        return configs.pop()

    return call


def test_flags_override_yaml_only_if_given(config_of, tmp_path: Path) -> None:
    """A default value that the help shows does not count as a given flag."""
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({"params": {"step": 40}, "limit": 7, "pool": {"workers": 3, "threads": 2}}))
    config = config_of("compress", "in", "out", "-c", path)
    assert (config.params, config.limit, config.pool.workers) == ({"step": 40}, 7, 3)
    config = config_of("compress", "in", "out", "-c", path, "--step", 26, "--limit", 9, "--workers", 5, "--set", "limit=2")
    assert (config.params, config.limit) == ({"step": 26.0}, 2)
    assert (config.pool.workers, config.pool.threads) == (5, 2)


def test_flags_set_pool_and_retry_failed(config_of) -> None:
    config = config_of("denoise", "in", "out", "--workers", 2, "--batch-size", 4, "--dtype", "bfloat16", "--retry-failed")
    assert (config.pool.workers, config.pool.batch_size, config.pool.dtype) == (2, 4, "bfloat16")
    assert config.retry_failed is True
    assert config_of("denoise", "in", "out", "--retry-failed", "TooManyPixels").retry_failed == "TooManyPixels"
    assert config_of("denoise", "in", "out").retry_failed is False


@pytest.mark.parametrize("name", TASKS)
def test_task_parameters_are_options(name: str) -> None:
    """Each parameter of a task has an option, except mappings, which only --set can give."""
    options = {key.removeprefix("params__") for key in parse(f"{name} in out") if key.startswith("params__")}
    assert options == TASKS[name].Params.model_fields.keys() - {"style_layers"}


def test_inpaint_key_implies_missing(config_of) -> None:
    config = config_of("inpaint", "in", "out", "--key", "#00ff00")
    assert TASKS["inpaint"].Params(**config.params).missing == "key"
    assert TASKS["inpaint"].Params(key="#00ff00", missing="alpha").missing == "alpha"
    assert TASKS["inpaint"].Params().missing == "file"
