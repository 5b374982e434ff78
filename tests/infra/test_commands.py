"""Command lines in infra/ are valid and their config files exist (tests/test_docs.py checks pages)."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from imagemill.jobs.cli import app
from imagemill.jobs.night_config import NightlyConfig
from imagemill.pipeline.config import read_yaml, validate
from tests.support.manifests import KUBERNETES, OVERLAYS, ROOT, built, of_kind

COMMAND = typer.main.get_command(app)
UsageError = typer.BadParameter.__base__
INFRA = ROOT / "infra"


def parse_command(line: str) -> dict[str, Any]:
    """Parse a command line with the product's parser; raise UsageError if it is invalid."""
    program, *arguments = shlex.split(line)
    assert Path(program).name == "imagemill" or arguments[:2] == ["-m", "imagemill"], line
    arguments = arguments[2:] if arguments[:1] == ["-m"] else arguments
    context = COMMAND.make_context("imagemill", arguments)
    name, command, rest = COMMAND.resolve_command(context, arguments)
    assert command is not None
    return command.make_context(name, rest, parent=context).params


def in_kubernetes() -> list[str]:
    overlay_jobs = [of_kind(built(KUBERNETES / f"overlays/{overlay}"), "RayJob") for overlay in OVERLAYS]
    jobs = [job["spec"] for by_name in overlay_jobs for job in by_name.values()]
    jobs.append(yaml.safe_load((KUBERNETES / "examples/raycronjob.yaml").read_text())["spec"]["jobTemplate"])
    return [job["entrypoint"] for job in jobs]


def in_units() -> list[str]:
    text = (INFRA / "systemd/imagemill-nightly.service").read_text()
    return re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)


def in_slurm() -> list[str]:
    return [re.search(r"^  (imagemill .+)$", (INFRA / "slurm/imagemill.sbatch").read_text(), re.MULTILINE)[1]]


def in_airflow() -> list[str]:
    calls = [
        node for node in ast.walk(ast.parse((INFRA / "airflow/imagemill_dag.py").read_text())) if isinstance(node, ast.Call)
    ]
    imagemill_calls = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "imagemill"]
    return [shlex.join(["imagemill", *(ast.literal_eval(argument) for argument in call.args)]) for call in imagemill_calls]


@pytest.mark.parametrize(
    ("place", "count"),
    [pytest.param(in_kubernetes, 7, marks=pytest.mark.external), (in_units, 1), (in_slurm, 1), (in_airflow, 2)],
)
def test_commands_of_pages_and_infra_are_valid(place, count: int) -> None:
    lines = place()
    assert len(lines) >= count
    for line in lines:
        config = parse_command(line).get("config") or ""
        if config.startswith("/etc/imagemill/"):
            # In pods the ConfigMap holds the file; on a machine night.yaml is the user's copy of the bundled file.
            in_pods = of_kind(built(KUBERNETES / "overlays/cpu"), "ConfigMap")["imagemill"]["data"]
            assert config.removeprefix("/etc/imagemill/") in in_pods
        elif config.startswith("jobs/configs/"):
            assert (ROOT / config).exists(), line
    validate(NightlyConfig, read_yaml(str(ROOT / "jobs/configs/nightly.yaml")), "nightly.yaml")


@pytest.mark.parametrize("line", ["imagemill nightly --untill 06:00 -c x", "imagemill nightyl -c x", "imagemill run"])
def test_check_of_commands_finds_invented_ones(line: str) -> None:
    with pytest.raises(UsageError):
        parse_command(line)


def test_slurm_script_starts_ray_with_valid_options() -> None:
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    ray_arguments = re.search(r"ray symmetric-run (.+) -- ", (INFRA / "slurm/imagemill.sbatch").read_text())[1]
    values = {"$address": "10.0.0.1:6379", "$SLURM_JOB_NUM_NODES": "4", "$SLURM_CPUS_PER_TASK": "16"}
    arguments = [values.get(argument, argument) for argument in shlex.split(ray_arguments)]
    options = curate_and_validate_ray_start_args(arguments)
    assert start.make_context("start", ["--head", *options]).params["num_cpus"] == 16
