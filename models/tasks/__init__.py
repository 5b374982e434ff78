"""Tasks by name. A new one is one file here and one row in this table."""

from models.tasks.colorize import Colorize
from models.tasks.compress import Compress
from models.tasks.denoise import Denoise
from models.tasks.inpaint import Inpaint
from models.tasks.perceive import Perceive
from models.tasks.stylize import Stylize
from models.tasks.task import Objective, Task

TASKS: dict[str, Task] = {
    "colorize": Colorize(),
    "compress": Compress(),
    "denoise": Denoise(),
    "inpaint": Inpaint(),
    "stylize": Stylize(),
}

# What can be trained: every task, and what a task's network may learn before it.
OBJECTIVES: dict[str, Objective] = {**TASKS, "perceive": Perceive()}
