"""What can be trained, by name: every task, and what a task's network may learn before it.

A new task is one file here and one in models/tasks, and a row in the table of each.
"""

from imagemill.models.objectives.colorize import Colorize
from imagemill.models.objectives.compress import Compress
from imagemill.models.objectives.denoise import Denoise
from imagemill.models.objectives.inpaint import Inpaint
from imagemill.models.objectives.objective import Objective, TaskObjective
from imagemill.models.objectives.perceive import Perceive
from imagemill.models.objectives.stylize import Stylize
from imagemill.models.objectives.upscale import Upscale

TASK_OBJECTIVES: dict[str, TaskObjective] = {
    "colorize": Colorize(),
    "compress": Compress(),
    "denoise": Denoise(),
    "inpaint": Inpaint(),
    "stylize": Stylize(),
    "upscale": Upscale(),
}

OBJECTIVES: dict[str, Objective] = {**TASK_OBJECTIVES, "perceive": Perceive()}
