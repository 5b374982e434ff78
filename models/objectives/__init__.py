"""Objectives by name: what each task does with a network, and what a network is trained for.

A new task needs one file here, one file in models/tasks, and a row in the table of each package.
"""

from imagemill.models.objectives.colorize import Colorize
from imagemill.models.objectives.compress import Compress
from imagemill.models.objectives.denoise import Denoise
from imagemill.models.objectives.inpaint import Inpaint
from imagemill.models.objectives.objective import Objective, TaskObjective
from imagemill.models.objectives.perceive import Perceive
from imagemill.models.objectives.restore import Restore
from imagemill.models.objectives.stylize import Stylize
from imagemill.models.objectives.upscale import Upscale

TASK_OBJECTIVES: dict[str, TaskObjective] = {
    "colorize": Colorize(),
    "compress": Compress(),
    "denoise": Denoise(),
    "inpaint": Inpaint(),
    "restore": Restore(),
    "stylize": Stylize(),
    "upscale": Upscale(),
}

OBJECTIVES: dict[str, Objective] = {
    **{name: objective for name, objective in TASK_OBJECTIVES.items() if isinstance(objective, Objective)},
    "perceive": Perceive(),
}
