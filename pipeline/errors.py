"""Errors that end a run, each with the exit code that the command line gives."""

from collections.abc import Sequence


class Failure(Exception):
    """What ends a run with one line for a person and an exit code."""

    exit_code: int


class ConfigError(Failure):
    """A configuration that cannot run: names the key, the value and what would be valid. Exit 2."""

    exit_code = 2


class TooManyRejects(Failure):
    """More rejects than `max_reject_fraction` allows. Exit 3."""

    exit_code = 3


class OutputHeld(Failure):
    """Another writer holds OUTPUT. Exit 4."""

    exit_code = 4


class StorageError(Failure):
    """A store that cannot be read or written. Exit 5."""

    exit_code = 5


class DamagedPart(StorageError):
    """A Parquet part that is not what was written; the store itself is well."""


class RunFailed(Failure):
    """Ray could not finish; what was committed stays. Exit 1."""

    exit_code = 1


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM; not an Exception, so that nothing on the way takes it for a failure. Exit 130."""

    exit_code = 130


class Deadline(Interrupted):
    """A night came to its end before its work did; what was committed stays. Exit 7."""

    exit_code = 7


class NightFailed(Failure):
    """A run of a night failed. The exit code is that of the first one, or 8 when the deadline came as well."""

    at_deadline = 8

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class VerificationError(Failure):
    """The output is not what its rows say. Exit 6."""

    exit_code = 6


def first_of(problems: Sequence[str], most: int = 10) -> str:
    """The first of several problems in one line, and how many more there are."""
    more = f"; and {len(problems) - most:,} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
