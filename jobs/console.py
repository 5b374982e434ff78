"""Print results on stdout: text, tables that cut nothing, JSON."""

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.cells import cell_len

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

    Where a line would be wider than the terminal, headings are broken at spaces. Where that is not enough, the widest
    columns leave the table: their values follow each row, one per line, as `heading: value`. Columns that
    hold only numbers are aligned right.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    in_table = list(range(len(columns)))
    headings = [[heading] for heading in columns]
    while not fits(widths := column_widths(headings, cells), in_table):
        if fits(column_widths(broken := [heading.split() for heading in columns], cells), in_table):
            headings = broken
        elif len(in_table) > 1:
            # The first column names the row: it stays unless it needs most of the line.
            is_long = widths[0] > (line_width() or 0) // 2
            in_table.remove(max(in_table, key=lambda n: widths[n] if n or is_long else 0))
        else:
            break
    is_number = [all(NUMBER.fullmatch(row[n]) for row in cells if row[n]) for n in range(len(columns))]

    def print_row(row: Sequence[str]) -> None:
        spaces = [" " * (width - cell_len(cell)) for width, cell in zip(widths, row, strict=True)]
        print_text("  ".join(spaces[n] + row[n] if is_number[n] else row[n] + spaces[n] for n in in_table).rstrip())

    for line in range(-max(len(headings[n]) for n in in_table), 0):
        print_row([heading[line] if -line <= len(heading) else "" for heading in headings])
    for row in cells:
        print_row(row)
        for n in range(len(columns)):
            if n not in in_table and row[n]:
                print_text(f"  {columns[n]}: {row[n]}")


def column_widths(headings: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> list[int]:
    """Return the width of each column; a heading is a list of lines."""
    columns = zip(headings, *rows, strict=True)
    return [max(map(cell_len, [*heading, *column]), default=0) for heading, *column in columns]


def fits(widths: Sequence[int], in_table: Sequence[int]) -> bool:
    """Return whether a line may hold some of the columns, with two spaces between them."""
    return sum(widths[n] for n in in_table) + 2 * (len(in_table) - 1) <= (line_width() or sys.maxsize)


def format_figure(value: object) -> str:
    """Format a table cell: four significant digits, two decimals from 10 on; empty for None."""
    if isinstance(value, float):
        return f"{value:g}" if value % 1 == 0 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def print_facts(facts: Iterable[tuple[str, str]]) -> None:
    """Print names and values in two columns; a value that does not fit next to its name gets its own line."""
    pairs = [(name, one_line(value)) for name, value in facts]
    width, limit = max((cell_len(name) for name, _ in pairs), default=0), line_width()
    for name, value in pairs:
        if limit and width + 2 + cell_len(value) > limit:
            print_text(f"{name}\n  {value}")
        else:
            print_text(f"{name:<{width}}  {value}".rstrip())
