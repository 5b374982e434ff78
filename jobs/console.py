"""Where commands print."""

import sys

from rich.console import Console

# Tables are wide, and where there is no terminal rich takes 80 columns.
console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 180)


def number(count: int, noun: str) -> str:
    """1 part, 2,000 parts, 2 copies."""
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else many}"
