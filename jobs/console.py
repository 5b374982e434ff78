"""Print results on stdout: text, tables that cut nothing, JSON."""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console

# Rich takes 80 columns when stdout is not a terminal, which is too narrow for its tables.
console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 180)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
NUMBER = re.compile(r"[-+]?[\d,.]+%?")


def number(count: int, noun: str) -> str:
    """Return a count with its noun in the right form: 1 part, 2,000 parts, 2 copies."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else many}"


def one_line(text: str) -> str:
    r"""Return text with its control characters written as \xNN, so that a file name cannot break or colour a line."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def print_text(text: str) -> None:
    """Print lines as they are: a terminal wraps long ones itself, so that a path can be copied and found by grep."""
    print(text)


def print_json(content: Mapping[str, object]) -> None:
    """Print the one JSON object that a command with `--json` writes to stdout."""
    # ASCII, because the encoding of stdout may lack characters of a file name.
    print(json.dumps(content, indent=2, allow_nan=False))


def line_width() -> int | None:
    """Return how many columns a line may have; None, without limit, where stdout is neither a terminal nor COLUMNS set."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except (OSError, ValueError):
        return None


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under their headings and cut no value.

    While a line would be wider than the terminal, the widest column leaves the table: its values follow each row, one per
    line, as `heading: value`. Columns that hold only numbers are aligned to the right.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    in_table, limit = list(range(len(columns))), line_width()
    while limit and len(in_table) > 1 and sum(widths[n] + 2 for n in in_table) - 2 > limit:
        in_table.remove(max(in_table, key=lambda n: widths[n]))
    is_number = [all(NUMBER.fullmatch(row[n]) for row in cells if row[n]) for n in range(len(columns))]

    def padded(row: Sequence[str]) -> str:
        spaces = [" " * (width - cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
        return "  ".join(spaces[n] + row[n] if is_number[n] else row[n] + spaces[n] for n in in_table).rstrip()

    print_text(padded(columns))
    for row in cells:
        print_text(padded(row))
        for n in range(len(columns)):
            if n not in in_table and row[n]:
                print_text(f"  {columns[n]}: {row[n]}")


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns; a value that does not fit next to its name gets its own line."""
    pairs = [(name, one_line(value)) for name, value in facts]
    width, limit = max((cell_len(name) for name, _ in pairs), default=0), line_width()
    for name, value in pairs:
        if limit and width + 2 + cell_len(value) > limit:
            print_text(f"{name}\n  {value}")
        else:
            print_text(f"{name:<{width}}  {value}".rstrip())
