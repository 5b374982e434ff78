"""Exceptions of models. This module imports no package, so that `import imagemill` stays cheap."""

import textwrap


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or unsuitable for the task. Commands end with exit code 2."""

    exit_code = 2


def shorten_error(error: Exception) -> str:
    """Return the message of an error as one line of at most 300 characters."""
    return textwrap.shorten(str(error), 300)


def describe_error(error: Exception) -> str:
    """Return the class and the message of an error as one line."""
    return f"{type(error).__name__}: {shorten_error(error)}"
