"""Tasks by name. A new one is one file here and one row in this table."""

from models.tasks.compress import Compress
from models.tasks.denoise import Denoise
from models.tasks.task import Task

TASKS: dict[str, Task] = {
    "compress": Compress(),
    "denoise": Denoise(),
}
