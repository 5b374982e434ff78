"""The tasks by name. This package does not import torch.

A new task needs one file here, one file in models/objectives, and a row in the table of each package.
"""

from imagemill.models.tasks.colorize import Colorize
from imagemill.models.tasks.compress import Compress
from imagemill.models.tasks.denoise import Denoise
from imagemill.models.tasks.inpaint import Inpaint
from imagemill.models.tasks.restore import Restore
from imagemill.models.tasks.stylize import Stylize
from imagemill.models.tasks.task import Task
from imagemill.models.tasks.upscale import Upscale

TASKS: dict[str, Task] = {
    "colorize": Colorize(),
    "compress": Compress(),
    "denoise": Denoise(),
    "inpaint": Inpaint(),
    "restore": Restore(),
    "stylize": Stylize(),
    "upscale": Upscale(),
}
