"""Values whose type is wider than what they are by now: unlike `assert`, these say what is wrong, and run with -O too."""

from typing import TypeVar

Kind = TypeVar("Kind")


def require_type(value: object, kind: type[Kind]) -> Kind:
    """Return a value that is of this type. Raises: TypeError for another one."""
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} is needed, a {type(value).__name__} was given")
    return value


def require_value(value: Kind | None, what: str) -> Kind:
    """Return a value that is not None. Raises: ValueError, which names `what` is missing."""
    if value is None:
        raise ValueError(f"{what} is missing")
    return value
