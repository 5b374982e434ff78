"""The documentation: the site builds strictly, and the links of the README lead to something."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("myst_parser", reason="the extra `docs` is missing: pip install 'imagemill[docs]'")


def build(source: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as `make docs` does, into `output`."""
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


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Dead links, dead anchors and pages that no table of contents names are warnings of Sphinx."""
    result = build(ROOT / "docs", tmp_path)
    assert result.returncode == 0, result.stderr
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html") for page in (ROOT / "docs").rglob("*.md")}
    assert not {page for page in pages if page.parts[0] != "_build" and not (tmp_path / page).exists()}


def test_site_with_dead_links_fails(tmp_path: Path) -> None:
    """The strict mode notices each kind of dead link."""
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
    """Code hosts show these pages from the root of the repository."""
    links = re.findall(r"\]\((?!https?:|#)([^)\s#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert not {link for link in links if not (ROOT / link).exists()}
