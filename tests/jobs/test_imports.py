"""Test what commands import: a command that does little must not wait for packages that it does not use."""

import subprocess
import sys

import pytest

COMMAND_LINE = "import imagemill.jobs.process"
TORCH_AND_RAY = ("torch", "torchvision", "ray")
OPTIONAL = ("matplotlib", "scipy", "skimage", "duckdb", "imagecodecs", "s3fs", "botocore", "aiohttp", "asyncio")
"""Packages of some commands, inputs or reports alone."""


def imported_packages(code: str) -> set[str]:
    """Return the packages that a new process has imported after `code`."""
    script = f"import sys\n{code}\nprint(*(name.partition('.')[0] for name in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    return set(answer.stdout.splitlines()[-1].split())


def test_package_imports_little() -> None:
    """A program that imports imagemill pays for the parts that it uses."""
    packages = {*TORCH_AND_RAY, *OPTIONAL, "numpy", "pyarrow", "pydantic", "yaml", "typer", "rich", "PIL", "fsspec"}
    assert not imported_packages("import imagemill") & packages


def test_version_imports_no_command() -> None:
    """`imagemill --version` answers without the command line."""
    code = "import contextlib, runpy\nsys.argv = ['imagemill', '--version']\n"
    code += "with contextlib.suppress(SystemExit):\n    runpy.run_module('imagemill', run_name='__main__')"
    script = f"{code}\nprint()"
    assert not imported_packages(script) & {"typer", "pydantic", "numpy", "pyarrow", "yaml", *TORCH_AND_RAY}


def test_command_line_imports_no_data_packages() -> None:
    """The command line needs only the fields of the configs."""
    assert not imported_packages(COMMAND_LINE) & {*TORCH_AND_RAY, *OPTIONAL, "numpy", "pyarrow", "fsspec", "PIL", "jinja2"}


@pytest.mark.parametrize("module", ["models.tasks", "models.checkpoint", "models.card", "pipeline.resolve", "pipeline.plan"])
def test_plan_imports_no_engine(module: str) -> None:
    """A plan of local files needs neither torch nor Ray, and no client of S3."""
    assert not imported_packages(f"import imagemill.{module}") & {*TORCH_AND_RAY, *OPTIONAL, "PIL", "jinja2"}
