"""Draw docs/architecture.svg from the imports of the code. Run: python docs/architecture.py

A box is a package, or a file of `pipeline/`. An arrow points to an import, and is left out if a longer path implies it.
`tests/test_house.py` fails if the picture does not match the imports, or if the components of `pipeline/` form a cycle.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).parent.parent
PACKAGE = "imagemill."
PICTURE = ROOT / "docs/architecture.svg"
LAYERS = {"jobs": "#dbe7f3", "pipeline": "#e3f0dc", "models": "#f6e8d6"}
"""Layers from top to bottom, with their colours. Each may import from those below."""
SUMMARISED = {"jobs": "commands", "models": "autoencoders"}
"""Layers whose own files are one box with this label; their packages are drawn as usual."""
WIDTH, HEIGHT, GAP = 2.5, 0.62, 0.75


def component_of(module: str) -> str:
    """Return the component of a module's dotted name: a package, a file of its layer, or the layer if it is summarised."""
    layer, *inner = module.split(".")
    if layer in SUMMARISED and (not inner or not (ROOT / layer / inner[0]).is_dir()):
        return layer
    return ".".join([layer, *inner[:1]])


def read_imports() -> dict[str, set[str]]:
    """Return the components that each component imports."""
    imports: dict[str, set[str]] = {}
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            component = component_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
            imported = {component_of(name) for name in imported_names(path) if name.split(".")[0] in LAYERS}
            imports.setdefault(component, set()).update(imported - {component})
    return imports


def imported_names(path: Path) -> Iterator[str]:
    """Yield the dotted names that a file imports, without `imagemill.`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix(PACKAGE) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.removeprefix(PACKAGE)


def imports_within(layer: str) -> dict[str, set[str]]:
    """Return the imports between the components of a layer. The layer's own `__init__` is no component."""
    components = {name: imported for name, imported in read_imports().items() if name.split(".")[0] == layer}
    if layer not in SUMMARISED:
        components.pop(layer, None)
    return {name: imported & components.keys() for name, imported in components.items()}


def reduce_edges(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Remove the edges that a longer path implies. `edges` must have no cycle."""

    @cache
    def reachable(name: str) -> frozenset[str]:
        return frozenset(edges[name].union(*(reachable(other) for other in edges[name])))

    return {name: {o for o in ends if not any(o in reachable(p) for p in ends - {o})} for name, ends in edges.items()}


def row_numbers(edges: dict[str, set[str]]) -> dict[str, int]:
    """Return 0 for components that import nothing, otherwise one more than the highest row they import."""

    @cache
    def row(name: str) -> int:
        return max((1 + row(other) for other in edges[name]), default=0)

    return {name: row(name) for name in edges}


def describe() -> str:
    """Return the imports as text. The picture contains it, so that a test can compare both."""
    return "; ".join(f"{name} > {', '.join(sorted(ends))}" for name, ends in sorted(read_imports().items()) if ends)


def compute_layout() -> tuple[dict[str, tuple[float, float]], list[tuple[str, float, float]]]:
    """Return the centre of each component, and each layer with its bottom and top."""
    centres, layers, bottom = {}, [], 0.0
    for layer in reversed(LAYERS):
        components = imports_within(layer)
        rows = dict.fromkeys(components, 0) if layer in SUMMARISED else row_numbers(components)
        top = bottom
        for number in range(max(rows.values()) + 1):
            row = sorted(name for name in components if rows[name] == number)
            if centres and layer not in SUMMARISED:
                # Place each component above the ones it imports.
                row.sort(key=lambda name: sum(centres[o][0] for o in components[name]) / max(1, len(components[name])))
            for position, name in enumerate(row):
                centres[name] = (position - (len(row) - 1) / 2) * (WIDTH + GAP), top + HEIGHT
            top += HEIGHT + GAP
        layers.append((layer, bottom, top))
        bottom = top + GAP
    return centres, layers


def draw(path: Path) -> None:
    """Draw the picture."""
    plt.rcParams |= {"svg.hashsalt": "imagemill", "svg.fonttype": "none", "font.size": 9}
    centres, layers = compute_layout()
    half = max(abs(x) for x, _ in centres.values()) + WIDTH
    figure, axes = plt.subplots(figsize=(2 * half / 1.6, layers[-1][2] / 1.3))
    for layer, bottom, top in layers:
        axes.add_patch(
            FancyBboxPatch((-half, bottom), 2 * half, top - bottom, boxstyle="round,pad=0.1", color=LAYERS[layer])
        )
        axes.text(-half + 0.1, top - 0.1, f"{layer}/", fontsize=13, fontweight="bold", va="top")
        if layer in SUMMARISED:
            continue
        for name, ends in reduce_edges(imports_within(layer)).items():
            for other in sorted(ends):
                (x, y), (u, v) = centres[name], centres[other]
                points = {"xy": (u, v + HEIGHT / 2), "xytext": (x, y - HEIGHT / 2)}
                axes.annotate("", **points, arrowprops={"arrowstyle": "-|>", "color": "#667", "lw": 0.9})
    for name, (x, y) in centres.items():
        is_package = (ROOT / name.replace(".", "/")).is_dir()
        label = SUMMARISED.get(name) or name.split(".")[-1] + ("/" if is_package else ".py")
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        style = {"fc": "white", "ec": "#445", "lw": 0.9, "zorder": 4}
        axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0.03", **style))
        axes.text(x, y, label, ha="center", va="center", fontweight="bold" if is_package else "normal", zorder=5)
    axes.set(xlim=(-half - 0.2, half + 0.2), ylim=(-0.2, layers[-1][2] + 0.2))
    axes.set_aspect("equal")
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Description": describe()})


if __name__ == "__main__":
    draw(PICTURE)
