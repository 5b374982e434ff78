"""The floors of the house: models ← pipeline ← jobs; nobody imports upward, nobody imports infra."""

import ast
import html
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "docs"))

import architecture  # noqa: E402
import reference  # noqa: E402

from imagemill.models.tasks import TASKS  # noqa: E402
from imagemill.pipeline.config import RunConfig, read_yaml, validate  # noqa: E402

MAY_IMPORT = {"models": {"models"}, "pipeline": {"models", "pipeline"}, "jobs": {"models", "pipeline", "jobs"}}
FILES = sorted(path for floor in MAY_IMPORT for path in (ROOT / floor).rglob("*.py"))


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.removeprefix("imagemill.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}".removeprefix("imagemill.") for alias in node.names}
    return names


def test_imports_go_down_only() -> None:
    """models import nothing of ours, pipeline imports models, jobs import both; models open no files and know no Ray."""
    wrong = []
    for path in FILES:
        floor, names = path.relative_to(ROOT).parts[0], imports(path)
        roots = {name.split(".")[0] for name in names}
        forbidden = {"models", "pipeline", "jobs", "infra", "tests"} - MAY_IMPORT[floor]
        if floor == "models":
            forbidden |= {"ray", "pyarrow", "s3fs"}
            # Only checkpoint.py opens files.
            forbidden |= set() if path.name == "checkpoint.py" else {"fsspec", "pathlib"}
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(forbidden & roots)]
        if floor == "pipeline" and path.name not in ("resolve.py", "worker.py", "__init__.py"):
            rooms = {
                room
                for room in ("sources", "block_processor", "sink")
                if any(n.startswith(f"pipeline.{room}") for n in names)
            }
            wrong += [f"{path.relative_to(ROOT)} imports {' and '.join(rooms)}"] if len(rooms - {path.stem}) > 1 else []
    assert not wrong


def test_product_code_has_no_assert() -> None:
    """An AssertionError tells a person nothing: raise an error that names the problem, or use models/type_checks.py."""
    trees = {path: ast.parse(path.read_text()) for path in FILES}
    lines = [f"{path}:{n.lineno}" for path, tree in trees.items() for n in ast.walk(tree) if isinstance(n, ast.Assert)]
    assert not lines


def test_file_names_state_a_purpose() -> None:
    assert not {path.stem for path in FILES} & {"util", "utils", "common", "helper", "helpers", "manager", "misc"}


def test_pipeline_has_no_import_cycle() -> None:
    edges = architecture.imports_within("pipeline")
    while leaves := {name for name, imported in edges.items() if not imported & edges.keys()}:
        edges = {name: imported for name, imported in edges.items() if name not in leaves}
    assert not edges


def test_architecture_picture_matches_imports() -> None:
    description = re.search("<dc:description>(.*?)</dc:description>", architecture.PICTURE.read_text(), re.DOTALL)
    assert description
    text = " ".join(html.unescape(description[1]).split())
    assert text == architecture.describe(), "docs/architecture.svg is out of date: run python docs/architecture.py"


def test_reference_is_up_to_date() -> None:
    for path, text in reference.render_files().items():
        assert path.read_text(encoding="utf-8") == text, "python docs/reference.py writes it again"


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_bundled_configs_are_valid(path: Path) -> None:
    kind = path.stem.split("_")[0]
    config = validate(reference.CONFIGS[kind if kind in reference.CONFIGS else "run"], read_yaml(str(path)), path.name)
    if isinstance(config, RunConfig):
        TASKS[config.task].Params(**config.params)


RIDDLES = (
    r"\b([Bb]e it|[Bb]esides?|[Ww]hatever|[Ff]or want of|who asks|that (is|are) none|what is there|of (its|their|our) own)\b"
)
"""Phrases that a reader has to read twice."""


def test_texts_use_plain_words() -> None:
    """A table or a config that needs one of these phrases says the same with a noun and a verb."""
    folders = [ROOT / name for name in ("jobs", "models", "pipeline", "infra", "docs", "tests")]
    paths = [*ROOT.glob("*.*"), ROOT / "Makefile", *(path for folder in folders for path in folder.rglob("*.*"))]
    texts = [p for p in paths if p.suffix in {".py", ".md", ".yaml", ".html", ".toml", ""} and "_build" not in p.parts]
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in texts
        if path.is_file() and path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(RIDDLES, line)
    ]
    assert not hits
