"""A file that a command leaves in a folder of the user."""

from pathlib import Path

from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.storage import Store


class Target:
    """`Target(path)` before the work, `write(data)` after it."""

    def __init__(self, path: str, overwrite: bool = False) -> None:
        """Raises: ConfigError when the path has no folder, is one, or is a file that imagemill did not write."""
        self.path = path
        place = Path(path)
        if not place.parent.is_dir():
            raise ConfigError(f"{path}: folder {place.parent} does not exist: make it")
        if place.is_dir():
            raise ConfigError(f"{path} is a folder: give a file")
        self._name, self._written = place.name, FileRecord(Store(str(place.parent)), overwrite)
        self._written.check([self._name])

    def write(self, data: bytes) -> None:
        """Raises: OSError."""
        with self._written:
            self._written.announce([self._name])
            self._written.write(self._name, data)


def target_of(path: str | None, overwrite: bool) -> Target | None:
    """The target of an option that may be absent. Raises: as `Target`."""
    return Target(path, overwrite) if path else None
