"""What can be trained, by name: every task, and what a task's network may learn before it.

A new task is one file here and one in models/tasks, and a row in the table of each.
"""

from models.objectives.colorize import Colorize
from models.objectives.compress import Compress
from models.objectives.denoise import Denoise
from models.objectives.inpaint import Inpaint
from models.objectives.objective import Objective, TaskObjective
from models.objectives.perceive import Perceive
from models.objectives.stylize import Stylize
from models.objectives.upscale import Upscale

TASK_OBJECTIVES: dict[str, TaskObjective] = {
    "colorize": Colorize(),
    "compress": Compress(),
    "denoise": Denoise(),
    "inpaint": Inpaint(),
    "stylize": Stylize(),
    "upscale": Upscale(),
}

OBJECTIVES: dict[str, Objective] = {**TASK_OBJECTIVES, "perceive": Perceive()}
