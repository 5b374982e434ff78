"""Keep pandas out of a process that uses pyarrow: pyarrow imports pandas when it first converts a Python list."""

import sys
from importlib.abc import MetaPathFinder
from typing import Any


class MissingPandas(MetaPathFinder):
    """A finder that hides pandas."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> None:
        """Raise ModuleNotFoundError for pandas."""
        if name == "pandas":
            raise ModuleNotFoundError(name)


def leave_out_pandas() -> None:
    """Let pyarrow decide, while pandas is hidden, that it need not recognise Series in its arguments.

    The import takes longer than a plan of 10,000 images. Later imports of pandas and `to_pandas` work as always. Call this
    function only in a process of imagemill, because a program that imports imagemill may pass Series to pyarrow.
    """
    if "pandas" in sys.modules:
        return
    import pyarrow as pa

    finder = MissingPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(finder)
