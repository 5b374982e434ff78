"""Test the documentation: the site builds without warnings, links resolve and commands work."""

import dataclasses
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from imagemill.jobs.cli import app
from imagemill.jobs.night_summary import NightSummary, RunSummary
from tests.support.imported_models import build_dncnn
from tests.support.imported_networks import spandrel_card, write_network
from tests.support.page_commands import run_page

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "_build" not in path.parts)
COMMAND = typer.main.get_command(app)
needs_sphinx = pytest.mark.skipif(
    importlib.util.find_spec("myst_parser") is None, reason="the extra `docs` is missing: pip install 'imagemill[docs]'"
)


def build(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Build the site into `output`, like `make docs`."""
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--keep-going",
        "--nitpicky",
        "-q",
        str(source),
        str(output),
    ]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.external
@needs_sphinx
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Sphinx warns about dead links, dead anchors and pages missing from the table of contents."""
    result = build(ROOT / "docs", tmp_path)
    assert result.returncode == 0, result.stderr
    assert not {"search", "genindex"} & {page.stem for page in PAGES}, "Sphinx writes pages of these names itself"
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")}
    assert not {page for page in pages if page.parts[0] != "_build" and not (tmp_path / page).exists()}


@pytest.mark.external
@needs_sphinx
def test_site_with_dead_links_fails(tmp_path: Path) -> None:
    """The strict mode reports each kind of dead link."""
    source = tmp_path / "source"
    source.mkdir()
    settings = (ROOT / "docs/conf.py").read_text()
    (source / "conf.py").write_text(settings.replace("Path(__file__).parent.parent", f"Path({str(ROOT)!r})"))
    (source / "page.md").write_text("---\norphan: true\n---\n# Page\n")
    links = ["[x](missing.md)", "[x](page.md#missing)", "[x](#missing)", "![x](missing.png)"]
    (source / "index.md").write_text("# Home\n\n" + "\n\n".join(links) + "\n")
    result = build(source, tmp_path / "site")
    assert result.returncode == 1
    assert [line for line in (3, 5, 7, 9) if f"index.md:{line}: WARNING" not in result.stderr] == [], result.stderr


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md"])
def test_links_to_files_lead_somewhere(page: str) -> None:
    """Links must resolve from the root of the repository, where code hosts show these pages."""
    links = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert not {link for link in links if not (ROOT / link).exists()}


def test_notification_keys_are_documented() -> None:
    """docs/nightly.md documents each key of a notification."""
    section = (ROOT / "docs/nightly.md").read_text().partition("## Notification")[2].partition("\n## ")[0]
    keys = {field.name for summary in (NightSummary, RunSummary) for field in dataclasses.fields(summary)}
    assert not {key for key in keys if f"`{key}`" not in section}


def test_readme_is_short() -> None:
    """The README must be readable in 30 seconds; details belong in docs/."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def commands_of(text: str) -> list[str]:
    """Return the imagemill commands in a page's code blocks; join continued lines."""
    blocks = re.findall(r"```(?:sh|sh run|text)\n(.*?)```|((?:^    \S.*\n)+)", text, re.DOTALL | re.MULTILINE)
    lines = "\n".join(fenced or indented for fenced, indented in blocks).replace("\\\n", " ").splitlines()
    commands = [re.match(r"\s*(?:\$ )?((?:\S*/)?imagemill [^|;&>]+)", line) for line in lines]
    return [match[1] for match in commands if match and not re.search("…|--help", match[1])]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_pages_parse(page: Path) -> None:
    """Each command on a page is valid, and each bundled config that it names exists."""
    for line in commands_of(page.read_text(encoding="utf-8")):
        arguments = shlex.split(line, comments=True)[1:]
        context = COMMAND.make_context("imagemill", arguments)
        name, command, rest = COMMAND.resolve_command(context, arguments)
        assert command is not None, line
        config = command.make_context(name, rest, parent=context).params.get("config") or ""
        assert not config.startswith("jobs/configs/") or (ROOT / config).exists(), line


def test_quoted_messages_exist() -> None:
    """Each message in the table of docs/clusters.md occurs in our code or in Ray."""
    table = (ROOT / "docs/clusters.md").read_text().partition("| message contains |")[2].partition("\n\n")[0]
    fragments = re.findall(r"^\| `(.+?)`", table, re.MULTILINE)
    code = "".join(path.read_text() for folder in ("jobs", "pipeline") for path in (ROOT / folder).rglob("*.py"))
    assert len(fragments) > 5
    assert not [fragment for fragment in fragments if fragment not in code and fragment != "Version mismatch"]


@pytest.mark.parametrize("tiling", ["never", "exact"])
def test_program_of_the_restore_page_runs(tiling: str, tmp_path: Path, monkeypatch, capsys) -> None:
    """For photos of several sizes. A network whose tiles are exact gets a sentence instead of a traceback."""
    [program] = re.findall(r"```python\n(.*?)```", (ROOT / "docs/tasks/restore.md").read_text(), re.DOTALL)
    write_network(tmp_path / "taef2", spandrel_card(build_dncnn(), "DnCNN", "denoise", channels=1, tiling=tiling, halo=9))
    for folder in ("nets", "photos"):
        (tmp_path / folder).mkdir()
    (tmp_path / "nets/nets.py").touch()
    for number in (1, 2):
        Image.fromarray(np.full((40, 30 * number, 3), 100, np.uint8)).save(tmp_path / f"photos/{number}.png")
    monkeypatch.chdir(tmp_path)
    if tiling == "exact":
        with pytest.raises(SystemExit, match="tiles of this network give the result of the whole image"):
            exec(program, {})
    else:
        exec(program, {})
        assert capsys.readouterr().out == "mean 0.00 levels, maximum 0\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder like that of `make demo`, with two photos, one of them truncated."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    for name in ("coffee.png", "rocket.jpg"):
        Image.fromarray(noise).save(folder / "photos" / name)
    photo = (folder / "photos/rocket.jpg").read_bytes()
    (folder / "photos/broken.jpg").write_bytes(photo[: len(photo) // 2])
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", ["quickstart.md", "nightly.md"])
def test_commands_of_pages_run(page: str, demo: Path, tmp_path: Path) -> None:
    """The commands of a page work unchanged, in order."""
    outputs = run_page(ROOT / "docs" / page, demo, tmp_path)
    assert any("broken.jpg" in output or '"rejected": 1' in output for output in outputs)
