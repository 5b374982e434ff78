"""The rooms of the house as the code's imports say: `python docs/architecture.py` draws docs/architecture.svg.

A room is a file of `pipeline/` or a package; an arrow goes from who imports to what is imported, and is left out where a
longer way says the same. `tests/test_house.py` fails when the picture is not of these imports, or when they form a ring.
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
FLOORS = {"jobs": "#dbe7f3", "pipeline": "#e3f0dc", "models": "#f6e8d6"}
"""From the top down, with their colours; each may import from those below."""
GRAND = {"jobs": "commands", "models": "autoencoders"}
"""Floors of which only the packages are drawn, and what their own files are called together."""
WIDTH, HEIGHT, GAP = 2.5, 0.62, 0.75


def room_of(module: str) -> str:
    """Room of a module's dotted name: a package or file of the floor; the floor's own files are one in GRAND."""
    floor, *inner = module.split(".")
    if floor in GRAND and (not inner or not (ROOT / floor / inner[0]).is_dir()):
        return floor
    return ".".join([floor, *inner[:1]])


def imports() -> dict[str, set[str]]:
    """What each room imports."""
    found: dict[str, set[str]] = {}
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
            asked = {room_of(name) for name in names_in(path) if name.split(".")[0] in FLOORS}
            found.setdefault(room, set()).update(asked - {room})
    return found


def names_in(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix(PACKAGE) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.removeprefix(PACKAGE)


def within(floor: str) -> dict[str, set[str]]:
    """The imports between the rooms of a floor; the package's own `__init__` is nobody's room."""
    rooms = {room: asked for room, asked in imports().items() if room.split(".")[0] == floor}
    if floor not in GRAND:
        rooms.pop(floor, None)
    return {room: asked & rooms.keys() for room, asked in rooms.items()}


def shortest(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the edges that a longer way makes needless. `edges` have no ring."""

    @cache
    def reached(room: str) -> frozenset[str]:
        return frozenset(edges[room].union(*(reached(other) for other in edges[room])))

    return {room: {o for o in asked if not any(o in reached(p) for p in asked - {o})} for room, asked in edges.items()}


def levels(edges: dict[str, set[str]]) -> dict[str, int]:
    """0 for what imports nothing, else one more than the highest that is imported."""

    @cache
    def level(room: str) -> int:
        return max((1 + level(other) for other in edges[room]), default=0)

    return {room: level(room) for room in edges}


def said() -> str:
    """The imports as text, by which a picture is known."""
    return "; ".join(f"{room} > {', '.join(sorted(asked))}" for room, asked in sorted(imports().items()) if asked)


def placed() -> tuple[dict[str, tuple[float, float]], list[tuple[str, float, float]]]:
    """The middle of each room, and each floor with its bottom and top."""
    places, floors, bottom = {}, [], 0.0
    for floor in reversed(FLOORS):
        rooms = within(floor)
        level = dict.fromkeys(rooms, 0) if floor in GRAND else levels(rooms)
        top = bottom
        for number in range(max(level.values()) + 1):
            row = sorted(room for room in rooms if level[room] == number)
            if places and floor not in GRAND:
                # Above what they import, as far as there is room.
                row.sort(key=lambda room: sum(places[o][0] for o in rooms[room]) / max(1, len(rooms[room])))
            for place, room in enumerate(row):
                places[room] = (place - (len(row) - 1) / 2) * (WIDTH + GAP), top + HEIGHT
            top += HEIGHT + GAP
        floors.append((floor, bottom, top))
        bottom = top + GAP
    return places, floors


def draw(path: Path) -> None:
    """Draw the picture."""
    plt.rcParams |= {"svg.hashsalt": "imagemill", "svg.fonttype": "none", "font.size": 9}
    places, floors = placed()
    half = max(abs(x) for x, _ in places.values()) + WIDTH
    figure, axes = plt.subplots(figsize=(2 * half / 1.6, floors[-1][2] / 1.3))
    for floor, bottom, top in floors:
        axes.add_patch(
            FancyBboxPatch((-half, bottom), 2 * half, top - bottom, boxstyle="round,pad=0.1", color=FLOORS[floor])
        )
        axes.text(-half + 0.1, top - 0.1, f"{floor}/", fontsize=13, fontweight="bold", va="top")
        if floor in GRAND:
            continue
        for room, asked in shortest(within(floor)).items():
            for other in asked:
                (x, y), (u, v) = places[room], places[other]
                ends = {"xy": (u, v + HEIGHT / 2), "xytext": (x, y - HEIGHT / 2)}
                axes.annotate("", **ends, arrowprops={"arrowstyle": "-|>", "color": "#667", "lw": 0.9})
    for room, (x, y) in places.items():
        package = (ROOT / room.replace(".", "/")).is_dir()
        name = GRAND.get(room) or room.split(".")[-1] + ("/" if package else ".py")
        corner = (x - WIDTH / 2, y - HEIGHT / 2)
        style = {"fc": "white", "ec": "#445", "lw": 0.9, "zorder": 4}
        axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0.03", **style))
        axes.text(x, y, name, ha="center", va="center", fontweight="bold" if package else "normal", zorder=5)
    axes.set(xlim=(-half - 0.2, half + 0.2), ylim=(-0.2, floors[-1][2] + 0.2))
    axes.set_aspect("equal")
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None, "Description": said()})


if __name__ == "__main__":
    draw(PICTURE)
