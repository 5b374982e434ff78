"""The channel of the local engine: values in the memory of the driver, and messages between its processes."""

import queue
import threading
from multiprocessing.connection import Connection
from typing import Any


class LocalChannel:
    """The channel in the driver: values in its memory. Threads may call it."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def publish(self, key: str, content: dict[str, Any]) -> None:
        """Publish a value under a key, and replace the former value of the key."""
        with self._lock:
            self._values[key] = content

    def read(self, prefix: str) -> list[dict[str, Any]]:
        """Return the values published under keys with a prefix."""
        with self._lock:
            return [value for key, value in self._values.items() if key.startswith(prefix)]

    def delete(self, prefix: str) -> None:
        """Delete the values published under keys with a prefix."""
        with self._lock:
            for key in [key for key in self._values if key.startswith(prefix)]:
                del self._values[key]


class WorkerChannel:
    """The channel in a worker process: each call is a message to the driver. Threads may call it.

    A message that was sent arrives even if the process is killed at once.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sending, self._reading = threading.Lock(), threading.Lock()
        self.answers: queue.SimpleQueue[list[dict[str, Any]]] = queue.SimpleQueue()

    def send(self, *message: Any) -> None:
        """Send a message to the driver."""
        with self._sending:
            self._connection.send(message)

    def publish(self, key: str, content: dict[str, Any]) -> None:
        """Publish a value under a key, and replace the former value of the key."""
        self.send("publish", key, content)

    def read(self, prefix: str) -> list[dict[str, Any]]:
        """Return the values published under keys with a prefix."""
        with self._reading:
            self.send("read", prefix)
            return self.answers.get()

    def delete(self, prefix: str) -> None:
        """Delete the values published under keys with a prefix."""
        self.send("delete", prefix)
