"""Runtime checks that narrow a type for mypy. Unlike `assert`, they also run with `python -O` and say what is wrong."""

from typing import TypeVar

Kind = TypeVar("Kind")


def require_type(value: object, kind: type[Kind]) -> Kind:
    """Return `value` with the type `kind`.

    Raises:
        TypeError: when the value has another type.
    """
    if not isinstance(value, kind):
        raise TypeError(f"expected a {kind.__name__}, but got a {type(value).__name__}")
    return value


def require_value(value: Kind | None, name: str) -> Kind:
    """Return `value`, which must not be None.

    Raises:
        ValueError: when the value is None; the message contains `name`.
    """
    if value is None:
        raise ValueError(f"{name} is missing")
    return value
