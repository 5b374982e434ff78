"""Tasks by name. A new one is one file here and one row in this table."""

from models.tasks.colorize import Colorize
from models.tasks.compress import Compress
from models.tasks.denoise import Denoise
from models.tasks.inpaint import Inpaint
from models.tasks.task import Task

TASKS: dict[str, Task] = {
    "colorize": Colorize(),
    "compress": Compress(),
    "denoise": Denoise(),
    "inpaint": Inpaint(),
}
