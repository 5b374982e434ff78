"""Test the installed wheel: a command and an API under one import name, without optional packages."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement

from imagemill.pipeline.storage import Store
from tests.support.run_processes import make_photos

pytestmark = pytest.mark.external
ROOT = Path(__file__).parent.parent
HIDDEN = """
import importlib.abc, sys
class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in NAMES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""
EXTRA_MODULES = {"matplotlib", "tensorboardX", "torchmetrics", "bjontegaard", "skimage"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the bin/ folder of an environment with the wheel and a reference to its dependencies."""
    folder = tmp_path_factory.mktemp("package")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True, cwd=folder)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True, cwd=folder)
    [packages] = (folder / "venv/lib").glob("python*/site-packages")
    # A .pth file adds the folder, but ignores .pth files inside the folder, so the checkout stays hidden.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (packages / "sitecustomize.py").write_text(HIDDEN.replace("NAMES", repr(sorted(EXTRA_MODULES))))
    return folder / "venv/bin"


@pytest.fixture
def folder(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    """Return a user's folder with photos, and with modules that have the names of our folders."""
    make_photos(Store(str(tmp_path / "photos")), 3, crops)
    (tmp_path / "work").mkdir()
    for name in ("models", "jobs", "pipeline"):
        (tmp_path / f"work/{name}.py").write_text("raise SystemExit('the module of the user was imported')\n")
    return tmp_path / "work"


def run_command(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RAY_ADDRESS")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)


def test_wheel_runs_next_to_modules_of_the_same_names(installed: Path, folder: Path) -> None:
    result = run_command([str(installed / "imagemill"), "denoise", "../photos", "../out", "--set", "pool.actors=1"], folder)
    assert result.returncode == 0, result.stderr
    [record] = (folder.parent / "out/runs").glob("*/run.json")
    assert json.loads(record.read_bytes())["ok"] == 3


def test_wheel_api_runs_in_a_program(installed: Path, folder: Path) -> None:
    (folder / "program.py").write_text(
        "import imagemill\n"
        "result = imagemill.run('compress', input='../photos', output='../codes', pool={'actors': 1})\n"
        "print(result.ok, imagemill.read_latents('../codes').numpy().shape[0], imagemill.__file__)\n"
    )
    result = run_command([str(installed / "python"), "program.py"], folder)
    assert result.returncode == 0, result.stderr
    ok, latents, file = result.stdout.split()
    assert (ok, latents) == ("3", "3")
    assert Path(file).is_relative_to(installed.parent)


def test_package_installs_one_import_name(installed: Path, folder: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('imagemill', 'models', 'jobs', 'pipeline') if u.find_spec(n)])"
    assert run_command([str(installed / "python"), "-P", "-c", code], folder).stdout == "['imagemill']\n"


@pytest.mark.parametrize("command", ["train -c train.yaml", "evaluate -c evaluate.yaml"])
def test_command_without_its_extra_names_it(installed: Path, folder: Path, command: str) -> None:
    result = run_command([str(installed / "imagemill"), *command.split()], folder)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "pip install 'imagemill[train]'" in result.stderr


def test_plain_install_has_no_package_of_an_extra(installed: Path) -> None:
    [metadata] = installed.parent.glob("lib/python*/site-packages/imagemill-*.dist-info/METADATA")
    lines = [line.partition(": ")[2] for line in metadata.read_text().splitlines() if line.startswith("Requires-Dist: ")]
    plain = {Requirement(line).name for line in lines if "extra ==" not in line}
    assert "torch" in plain
    assert not plain & (EXTRA_MODULES | {"scikit-image"})
