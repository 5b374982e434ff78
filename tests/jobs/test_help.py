"""Test the command line's help: groups, width, defaults, version and completion."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import imagemill as imagemill_package
from imagemill.jobs.cli import PANELS, app

COMMAND = typer.main.get_command(app)
COLUMNS = 80


def commands(command: Any = COMMAND, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each command with its path of command names."""
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*path, name))


ALL = dict(commands())


def help_of(imagemill: Any, path: tuple[str, ...]) -> str:
    code, out, _ = imagemill(*path, "--help")
    assert code == 0
    return str(out)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_fits_80_columns(path: tuple[str, ...], imagemill, monkeypatch) -> None:
    """No line is longer than the terminal, and no word, flag or placeholder is cut or broken."""
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    text = help_of(imagemill, path)
    assert max(map(len, text.splitlines())) <= COLUMNS
    help_words = set(text.split())
    command = ALL[path]
    texts = [command.help or ""]
    for parameter in command.params:
        flags = parameter.opts if parameter.param_type_name == "option" else []
        texts += [*flags, parameter.metavar or "", getattr(parameter, "help", None) or ""]
    assert "…" not in text
    for word in " ".join(texts).split():
        # A long word may only break after a hyphen or a slash.
        assert word in help_words or all(part in text for part in re.split(r"(?<=[-/])", word)), word


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_texts_are_imperative_sentences(path: tuple[str, ...]) -> None:
    """Each text begins with a capital letter, or the name of the method it applies to, and ends with a period."""
    command = ALL[path]
    for text in [command.help, *(getattr(p, "help", None) for p in command.params if p.name != "help")]:
        assert text, path
        assert re.match(r"[A-Z]|gatys: |adain: ", text), text
        assert text.endswith("."), text


def test_help_groups_commands(imagemill, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    text = help_of(imagemill, ())
    assert re.findall(r"^╭─ (\w+) ", text, re.MULTILINE) == ["Options", *PANELS]
    assert list(PANELS) == ["Run", "Inspect", "Analyse", "Models", "Operate"]
    assert "<bool>" not in text


def test_help_shows_defaults_and_ranges(imagemill) -> None:
    text = " ".join(re.sub("[│ \n]+", " ", help_of(imagemill, ("compress",))).split())
    assert "Range: 18 to 128. [default: 26.0]" in text
    assert "[default: plain]" in text
    assert "--retry-failed [CLASS]" in text
    assert "--reconstruct Also write" in text


def test_version_is_printed(imagemill) -> None:
    code, out, _ = imagemill("--version")
    assert code == 0
    assert out == f"imagemill {imagemill_package.__version__}\n"


def test_completion_works_in_bash(tmp_path: Path) -> None:
    """`--install-completion bash` writes a file with which bash completes commands and choices."""
    command = tmp_path / "imagemill"
    command.write_text(f"#!{sys.executable}\nfrom imagemill.__main__ import main\nmain()\n")
    command.chmod(0o755)
    environment = {**os.environ, "HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    # Without this variable, Typer looks for a shell among the parent processes, and a test may have none.
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"
    subprocess.run([command, "--install-completion", "bash"], env=environment, timeout=120, check=True)
    [installed] = (tmp_path / ".bash_completions").iterdir()

    def complete(*words: str) -> list[str]:
        script = (
            f"source {installed}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
            "_imagemill_completion imagemill; echo ${COMPREPLY[@]}"
        )
        result = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
        return result.stdout.split()

    assert complete("imagemill", "den") == ["denoise"]
    assert complete("imagemill", "compress", "--coding", "p") == ["plain"]
