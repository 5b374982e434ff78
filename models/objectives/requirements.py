"""What a class of a user must offer, so that it can be trained for a task."""

import inspect

from torch import nn

from imagemill.models.objectives import OBJECTIVES


def find_missing(cls: type[nn.Module], task: str) -> str:
    """Return what a class lacks to be trained for a task, as words; empty if it lacks nothing.

    Args:
        cls: a subclass of torch.nn.Module.
        task: a key of OBJECTIVES.
    """
    objective = OBJECTIVES[task]
    if issubclass(cls, objective.trainable_types):
        return describe_methods(sorted(getattr(cls, "__abstractmethods__", ())))
    methods = [name for name in objective.module_methods if not defines(cls, name)]
    if objective.module_methods and not methods:
        return ""
    # A network of imagemill that serves images as well as classes of users do needs no mention.
    bases = [base for base in objective.trainable_types if not methods or inspect.isabstract(base)]
    base_classes = [f"the base class {base.__module__}.{base.__qualname__}" for base in bases]
    return ", or ".join([*([describe_methods(methods)] if methods else []), *base_classes])


def describe_methods(names: list[str]) -> str:
    """Return names as "the methods a, b"."""
    return f"the {'method' if len(names) == 1 else 'methods'} {', '.join(names)}" if names else ""


def defines(cls: type[nn.Module], method: str) -> bool:
    """Return whether a class has a method that is not abstract and not that of torch.nn.Module."""
    function = getattr(cls, method, None)
    is_abstract = getattr(function, "__isabstractmethod__", False)
    return callable(function) and not is_abstract and function is not getattr(nn.Module, method, None)


def trainable_tasks(cls: type[nn.Module]) -> list[str]:
    """Return the tasks that a class can be trained for."""
    return [task for task in OBJECTIVES if not find_missing(cls, task)]
