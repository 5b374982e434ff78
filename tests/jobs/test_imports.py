"""Test what commands import: a command that does little must not wait for packages that it does not use."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND_LINE = "import imagemill.jobs.process"
TORCH_AND_RAY = ("torch", "torchvision", "ray")
OPTIONAL = ("matplotlib", "scipy", "skimage", "duckdb", "imagecodecs", "s3fs", "botocore", "aiohttp", "asyncio")
"""Packages of some commands and inputs alone."""
PICTURES = ("PIL", "jinja2", "simplejpeg")
"""Packages of reports with pictures."""


def imported_packages(code: str) -> set[str]:
    """Return the packages that a new process has imported after `code`."""
    script = f"import sys\n{code}\nprint(*(name.partition('.')[0] for name in sys.modules))"
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=120)
    return set(answer.stdout.splitlines()[-1].split())


def test_package_imports_little() -> None:
    """A program that imports imagemill pays for the parts that it uses."""
    packages = {*TORCH_AND_RAY, *OPTIONAL, "numpy", "pyarrow", "pydantic", "yaml", "typer", "rich", "fsspec", *PICTURES}
    assert not imported_packages("import imagemill") & packages


def test_version_imports_no_command() -> None:
    """`imagemill --version` answers without the command line."""
    code = "import contextlib, runpy\nsys.argv = ['imagemill', '--version']\n"
    code += "with contextlib.suppress(SystemExit):\n    runpy.run_module('imagemill', run_name='__main__')"
    script = f"{code}\nprint()"
    assert not imported_packages(script) & {"typer", "pydantic", "numpy", "pyarrow", "yaml", *TORCH_AND_RAY}


def test_command_line_imports_no_data_packages() -> None:
    """The command line needs only the fields of the configs."""
    assert not imported_packages(COMMAND_LINE) & {*TORCH_AND_RAY, *OPTIONAL, "numpy", "pyarrow", "fsspec", *PICTURES}


@pytest.mark.parametrize(
    "module", ["models.tasks", "models.checkpoint", "jobs.plan", "jobs.batch", "pipeline.reports.report"]
)
def test_driver_imports_only_what_all_runs_need(module: str) -> None:
    """The driver of a run over local files needs neither torch nor Ray, and no client of S3."""
    assert not imported_packages(f"import imagemill.{module}") & {*TORCH_AND_RAY, *OPTIONAL, *PICTURES, "fsspec"}


def test_plan_imports_neither_torch_nor_pandas(tmp_path: Path) -> None:
    """`imagemill plan` checks the model in a worker process. pyarrow would import pandas to convert the first list."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "photo.jpg").write_bytes(b"an image that no plan opens")
    arguments = ["plan", "--task", "denoise", "--input", f"{tmp_path}/in", "--output", f"{tmp_path}/out"]
    code = f"sys.argv = ['imagemill', *{arguments}]\nfrom imagemill.jobs.cli import app\napp(standalone_mode=False)"
    assert not imported_packages(code) & {*TORCH_AND_RAY, *OPTIONAL, *PICTURES, "fsspec", "pandas"}


def test_pandas_can_be_used_after_it_was_left_out() -> None:
    code = "from imagemill.pipeline.without_pandas import leave_out_pandas\nleave_out_pandas()\nimport pyarrow as pa\n"
    code += "pa.array(['a'])\nassert 'pandas' not in sys.modules\nassert list(pa.table({'a': [1]}).to_pandas().a) == [1]"
    assert "pandas" in imported_packages(code)
