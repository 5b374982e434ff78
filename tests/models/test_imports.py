"""Test imports between the files of models/."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

MODELS = Path(__file__).parents[2] / "models"


def module_of(path: Path) -> str:
    return ".".join(["imagemill", *path.relative_to(MODELS.parent).with_suffix("").parts]).removesuffix(".__init__")


def test_models_have_no_import_cycle() -> None:
    """An import inside a function also counts, because a hidden cycle is still a cycle."""
    modules = {module_of(path): path for path in MODELS.rglob("*.py")}
    imports: dict[str, set[str]] = {}
    for module, path in modules.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                imports.setdefault(module, set()).update(names & modules.keys() - {module, "imagemill.models"})
    TopologicalSorter(imports).prepare()
