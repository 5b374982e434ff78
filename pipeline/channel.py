"""How workers and the driver of a run exchange counts and records of suspects, on every engine."""

from typing import Any, Protocol


class Channel(Protocol):
    """Values under keys, which survive the process that published them. Each engine has its own channel."""

    def publish(self, key: str, content: dict[str, Any]) -> None:
        """Publish a value under a key, and replace the former value of the key. Failures are logged and ignored."""

    def read(self, prefix: str) -> list[dict[str, Any]]:
        """Return the values published under keys with a prefix."""

    def delete(self, prefix: str) -> None:
        """Delete the values published under keys with a prefix. Failures are logged and ignored."""


class StageMetrics(Protocol):
    """Metrics that an engine serves to a monitoring system."""

    def observe(self, stage: str, seconds: float) -> None:
        """Record the duration of a stage."""

    def add(self, counts: dict[str, float]) -> None:
        """Add what was counted since the last call, by the names of Tally."""
