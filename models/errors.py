"""Exceptions of models. This module imports nothing, so that `import imagemill` stays cheap."""


class CheckpointError(Exception):
    """A checkpoint is missing, damaged or unsuitable for the task. Commands end with exit code 2."""

    exit_code = 2
