"""Batch image pipeline on Ray: every image ends as one committed row or one reject with a reason.

>>> import imagemill
>>> result = imagemill.run("denoise", input="photos", output="clean", sigma=25)
>>> latents = imagemill.read_latents("codes")
"""

import logging

from imagemill.jobs.api import PlanResult, RunResult, load_checkpoint, plan, run
from imagemill.models.errors import CheckpointError
from imagemill.pipeline import read_latents
from imagemill.pipeline.errors import ConfigError, OutputHeld, RunFailed, StorageError, TooManyRejects

__version__ = "0.2.0.dev0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "OutputHeld",
    "PlanResult",
    "RunFailed",
    "RunResult",
    "StorageError",
    "TooManyRejects",
    "__version__",
    "load_checkpoint",
    "plan",
    "read_latents",
    "run",
]

# A program that imports the package decides what it logs, and where.
logging.getLogger("imagemill").addHandler(logging.NullHandler())
