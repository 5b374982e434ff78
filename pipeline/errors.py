"""Exceptions that end a run, each with the exit code of the command."""

from collections.abc import Sequence


class Failure(Exception):
    """An error that ends a run with a one-line message and an exit code."""

    exit_code: int


class ConfigError(Failure):
    """An invalid configuration. The message names the key, the value and the valid choices. Exit 2."""

    exit_code = 2


class TooManyRejects(Failure):
    """More rejects than `max_reject_fraction` allows. Exit 3."""

    exit_code = 3


class OutputHeld(Failure):
    """Another run holds the output. Exit 4."""

    exit_code = 4


class StorageError(Failure):
    """A store cannot be read or written. Exit 5."""

    exit_code = 5


class DamagedPart(StorageError):
    """The content of a Parquet part is damaged; the store itself works. Exit 5."""


class RunFailed(Failure):
    """The engine could not finish. Committed rows stay. Exit 1."""

    exit_code = 1


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not an Exception, so that no handler mistakes it for a failure. Exit 130."""

    exit_code = 130


class Deadline(Interrupted):
    """A night reached its deadline before its work was finished. Committed rows stay. Exit 7."""

    exit_code = 7


class NightFailed(Failure):
    """A run of a night failed. The exit code is that of the first failed run, or 8 if the deadline passed too."""

    at_deadline = 8
    """Exit code if a run failed and the deadline passed too."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class VerificationError(Failure):
    """The output does not match its rows. Exit 6."""

    exit_code = 6


def join_first(problems: Sequence[str], limit: int = 10) -> str:
    """Join the first `limit` problems in one line, followed by the number of the remaining ones."""
    rest = f"; and {len(problems) - limit:,} more" if len(problems) > limit else ""
    return "; ".join(problems[:limit]) + rest
