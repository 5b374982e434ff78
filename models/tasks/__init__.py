"""Tasks by name, without torch. A new one is one file here and one in models/objectives, and a row in the table of each."""

from models.tasks.colorize import Colorize
from models.tasks.compress import Compress
from models.tasks.denoise import Denoise
from models.tasks.inpaint import Inpaint
from models.tasks.stylize import Stylize
from models.tasks.task import Task
from models.tasks.upscale import Upscale

TASKS: dict[str, Task] = {
    "colorize": Colorize(),
    "compress": Compress(),
    "denoise": Denoise(),
    "inpaint": Inpaint(),
    "stylize": Stylize(),
    "upscale": Upscale(),
}
