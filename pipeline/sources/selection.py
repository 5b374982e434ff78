"""Which images of an input are read: the patterns of `source.include` and `source.exclude`, written as in .gitignore."""

import re
from collections.abc import Iterable
from functools import lru_cache
from itertools import takewhile

WILDCARDS = re.compile(r"[*?\[\\]")


class Selection:
    """Selects images by their names within the input. Case is ignored.

    Args:
        include: only images that match one of these patterns are read; empty for all images.
        exclude: images that match one of these patterns are not read.
    """

    def __init__(self, include: Iterable[str], exclude: Iterable[str]) -> None:
        self.include, self.exclude = (list(map(compile_pattern, patterns)) for patterns in (include, exclude))
        self.include_folders = list(map(literal_folder, include))

    def __bool__(self) -> bool:
        """Return whether there is any pattern."""
        return bool(self.include or self.exclude)

    def has_image(self, name: str) -> bool:
        """Return whether an image is read, by its name within the input; SHARD/MEMBER for a member of a shard."""
        is_included = not self.include or any(pattern.search(name) for pattern in self.include)
        return is_included and not any(pattern.search(name) for pattern in self.exclude)

    def may_enter(self, folder: str) -> bool:
        """Return whether a folder or shard may contain images that are read, by its path within the input."""
        if any(pattern.search(f"{folder}/") for pattern in self.exclude):
            return False
        return not self.include or any(lie_on_one_path(folder, other) for other in self.include_folders)


select_by = lru_cache(Selection)
"""Return the Selection of two tuples of patterns, each compiled once."""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern, to be used with `search`.

    Raises:
        ValueError: when the pattern is invalid.
    """
    # Imported late: a process without patterns does without.
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

    if not pattern.strip("/ "):
        raise ValueError(f"{pattern!r} matches nothing. Write a name, such as drafts/, or a pattern, such as *.png")
    if "://" in pattern:
        raise ValueError(f"{pattern!r} is a location. Write a pattern that is relative to the input")
    if pattern.startswith("!"):
        raise ValueError(f"{pattern!r} starts with !. Use include and exclude, or write \\! for a name that starts with !")
    # In a .gitignore file, a # begins a comment, and spaces at the end are dropped.
    text = re.sub(r"^#", r"\\#", re.sub(r"^\./", "/", pattern))
    text = re.sub(r"(?<!\\) $", r"\\ ", text)
    try:
        expression, _ = GitIgnoreSpecPattern.pattern_to_regex(text)
        if expression is not None:
            return re.compile(expression, re.IGNORECASE)
    except (ValueError, re.error):
        pass
    raise ValueError(f"{pattern!r} is not a valid pattern. Check its brackets and backslashes")


def literal_folder(pattern: str) -> str:
    """Return the folder or file that everything that a pattern matches lies in; empty for the whole input."""
    if "/" not in pattern.rstrip("/"):
        return ""
    names = pattern.removeprefix("./").strip("/").split("/")
    return "/".join(takewhile(lambda name: not WILDCARDS.search(name), names))


def lie_on_one_path(one: str, other: str) -> bool:
    """Return whether one of two paths lies in the other, or both are the same. The empty path contains all others."""
    one, other = (f"{path.lower()}/" if path else "" for path in (one, other))
    return one.startswith(other) or other.startswith(one)
