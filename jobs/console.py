"""Where commands print."""

import sys

from rich.console import Console

# Tables are wide, and where there is no terminal rich takes 80 columns.
console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 180)
