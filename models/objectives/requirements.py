"""What a class of a user must offer, so that it can be trained for a task."""

from torch import nn

from imagemill.models.objectives import OBJECTIVES


def find_missing(cls: type[nn.Module], task: str) -> list[str]:
    """Return what a class lacks to be trained for a task: methods, or a base class. An empty list if nothing is missing.

    Args:
        cls: a subclass of torch.nn.Module.
        task: a key of OBJECTIVES.
    """
    objective = OBJECTIVES[task]
    if issubclass(cls, objective.trainable_types):
        return [f"the method {name}" for name in sorted(getattr(cls, "__abstractmethods__", ()))]
    if not objective.module_methods:
        names = " or ".join(f"{base.__module__}.{base.__qualname__}" for base in objective.trainable_types)
        return [f"the base class {names}"]
    return [f"the method {name}" for name in objective.module_methods if not defines(cls, name)]


def defines(cls: type[nn.Module], method: str) -> bool:
    """Return whether a class has a method that torch.nn.Module does not have, or its own version of it."""
    return callable(getattr(cls, method, None)) and getattr(cls, method) is not getattr(nn.Module, method, None)


def describe_missing(missing: list[str]) -> str:
    """Join what a class lacks."""
    return f"the class lacks {', '.join(missing)}"


def trainable_tasks(cls: type[nn.Module]) -> list[str]:
    """Return the tasks that a class can be trained for."""
    return [task for task in OBJECTIVES if not find_missing(cls, task)]
