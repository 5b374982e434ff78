"""Code of users: refused without permission, shipped to the workers, and never another version than that of the import."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import imagemill as api
from imagemill.models.errors import CheckpointError
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.user_code import MAX_BYTES, read_user_code
from tests.support.imported_models import save_autoencoder, unpack_in, weights_of, write_package

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the package my_package, a cache, a hidden file and large data."""
    unpack_in(tmp_path, monkeypatch)
    folder = write_package(tmp_path / "code")
    for name, content in (("__pycache__/old.pyc", b"old"), (".secret", b"secret"), ("weights.bin", bytes(200_000))):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def checkpoint(imagemill: Command, code: Path, tmp_path: Path) -> Path:
    """Return a checkpoint of my_package.nets:Coder."""
    torch.save(weights_of(code, "Coder"), tmp_path / "coder.pt")
    dest = tmp_path / "coder"
    status, _, err = imagemill(
        "models", "import", tmp_path / "coder.pt", dest, "--architecture", "my_package.nets:Coder", "--code", code
    )
    assert status == 0, err
    return dest


def test_run_ships_code_to_workers(
    engine: str, imagemill: Command, checkpoint: Path, code: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["compress", photos, out, "--checkpoint", checkpoint, "--engine", engine]
    status, _, err = imagemill(*command, "--code", code)
    assert status == 0, err
    [path] = out.glob("runs/*/run.json")
    record = json.loads(path.read_text())
    assert (record["ok"], record["rejected"]) == (3, 0)
    assert len(record["code_sha256"]) == 64
    assert "my_package" not in sys.modules
    # Later commands decode the latents, and ask for the permission again.
    status, _, err = imagemill("decode", out, tmp_path / "decoded")
    assert status == 2
    assert "--code" in err
    status, _, err = imagemill("decode", out, tmp_path / "decoded", "--code", code)
    assert status == 0, err
    assert len(list((tmp_path / "decoded").glob("*.png"))) == 3


@pytest.mark.parametrize("command", ["compress", "plan", "show", "evaluate"])
def test_code_needs_permission(
    command: str, imagemill: Command, checkpoint: Path, code: Path, photos: Path, tmp_path: Path
) -> None:
    (code / "my_package/__init__.py").write_text(f"open({str(tmp_path / 'attacked')!r}, 'w')")
    out = tmp_path / "out"
    arguments = {
        "compress": ["compress", photos, out, "--checkpoint", checkpoint],
        "plan": ["plan", "--task", "compress", "--input", photos, "--output", out, "--checkpoint", checkpoint],
        "show": ["models", "show", checkpoint],
        "evaluate": ["evaluate", "--task", "compress", "--input", photos, "--checkpoint", checkpoint],
    }[command]
    status, _, err = imagemill(*arguments)
    assert status == 2
    assert "runs the Python code my_package.nets:Coder" in err
    assert "--code FOLDER" in err
    assert len(err.splitlines()) == 1
    # With the permission, code that has changed since the import is refused before it runs.
    status, _, err = imagemill(*arguments, "--code", code)
    assert status == 2
    assert "the code of my_package.nets:Coder has changed" in err
    assert not (tmp_path / "attacked").exists()
    assert not out.exists()


def test_models_show_with_code(imagemill: Command, checkpoint: Path, code: Path) -> None:
    status, out, err = imagemill("models", "show", checkpoint, "--code", code)
    assert status == 0, err
    assert "ConvTranspose2d" in out


def test_load_checkpoint_takes_code(checkpoint: Path, code: Path) -> None:
    with pytest.raises(CheckpointError, match="--code FOLDER"):
        api.load_checkpoint(checkpoint)
    loaded = api.load_checkpoint(checkpoint, code=code)
    assert loaded(np.zeros((30, 41, 3), np.uint8)).shape == (30, 41, 3)


def test_installed_code_needs_no_folder(
    imagemill: Command, checkpoint: Path, code: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["compress", photos, tmp_path / "out", "--checkpoint", checkpoint, "--code", "installed"]
    # Files in the current folder are not installed.
    monkeypatch.chdir(code)
    status, _, err = imagemill(*command)
    assert status == 2
    assert "there is no module 'my_package' among the installed packages" in err
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(code))
    try:
        status, _, err = imagemill(*command)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "my_package"]:
            del sys.modules[name]
    assert status == 0, err


def test_shipped_code_leaves_out_caches_and_data(code: Path) -> None:
    shipped = read_user_code(str(code))
    assert [name for name, _ in shipped.files] == ["my_package/__init__.py", "my_package/blocks.py", "my_package/nets.py"]
    folder = shipped.unpack()
    (folder / "my_package/nets.py").write_text("changed")
    assert (shipped.unpack() / "my_package/nets.py").read_text() != "changed"


def test_unused_code_is_deleted_after_a_month(code: Path) -> None:
    old = read_user_code(str(code)).unpack()
    os.utime(old, (0, 0))
    (code / "my_package/more.py").write_text("")
    recent = read_user_code(str(code)).unpack()
    assert (old.exists(), recent.exists()) == (False, True)


def test_shipped_code_has_limits(code: Path, tmp_path: Path) -> None:
    (code / "huge.py").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="more than 10 MB"):
        read_user_code(str(code))


def test_unpacked_code_is_private(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user of the machine must not be able to replace the code that a run imports."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = tmp_path / f"imagemill-code-{os.getuid()}"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    with pytest.raises(ConfigError, match="can be changed by other users"):
        read_user_code(str(code)).unpack()
    folder.rmdir()
    folder.symlink_to(code)
    with pytest.raises(ConfigError, match="can be changed by other users"):
        read_user_code(str(code)).unpack()


def test_run_names_a_missing_library(
    imagemill: Command, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_autoencoder(tmp_path / "source", "AutoencoderTiny")
    imagemill("models", "import", tmp_path / "source", tmp_path / "tiny")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    status, _, err = imagemill("compress", photos, tmp_path / "out", "--checkpoint", tmp_path / "tiny")
    assert status == 2
    assert "pip install 'imagemill[diffusers]'" in err
    assert not (tmp_path / "out").exists()
