"""The set-up of `make demo` prints its steps and fails if pip fails."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("code", [0, 7])
def test_setup_prints_progress_and_keeps_exit_code(tmp_path: Path, code: int) -> None:
    # The loop calls this `sleep`, which counts its calls, so that pip can end after the second line of progress.
    (tmp_path / "bin").mkdir()
    sleep = tmp_path / "bin/sleep"
    sleep.write_text(f"#!/bin/sh\necho >>{tmp_path}/ticks\nexec /bin/sleep 0.1\n")
    sleep.chmod(0o755)
    pip = tmp_path / "pip.sh"
    wait = f'until [ "$(cat {tmp_path}/ticks 2>/dev/null | wc -l)" -ge 3 ]; do /bin/sleep 0.05; done'
    pip.write_text(f"echo 'Downloading torch.whl (800 MB)'; {wait}; echo broken >&2; exit {code}")
    venv = tmp_path / "venv"
    venv.mkdir()
    (venv / ".base").touch()
    variables = [f"VENV={venv}", f"PIP=sh {pip}", "TICK_SECONDS=1"]
    # make passes its own variables through the environment, so remove them.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    environment["PATH"] = f"{sleep.parent}{os.pathsep}{environment['PATH']}"
    result = subprocess.run(
        ["make", *variables, str(venv / ".demo")], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == (2 if code else 0), result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("  1 s, "), result.stdout
    assert lines[0].endswith(" MB: Downloading torch.whl (800 MB)")
    assert lines[1].startswith("  2 s, ")
    assert "broken" in result.stderr
    assert (venv / ".demo").exists() == (not code)
