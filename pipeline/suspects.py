"""Identify the image that kills its process, from the records that processes publish before they die."""

import hashlib
from typing import Any

from imagemill.pipeline.channel import Channel
from imagemill.pipeline.errors import RunFailed

ACCUSED_AFTER = 2
"""Deaths of processes that worked on one image alone, until the image is accused. A single death may be a coincidence, such
as a lack of memory."""
TRIED_BY_RUNS = 3
"""Runs that try an accused image, because another program may have used up the memory. After that, only --retry-failed
processes the image."""
MOST_DEATHS = 60
"""Deaths of processes in one block after which the run fails."""


class Suspects:
    """The deaths of processes in one block of a run. Each process that begins the block counts as dead until `clear`.

    Args:
        channel: keeps the record of the block when a process dies.
        run_id: id of the run.
        image_ids: images of the block.

    Raises:
        RunFailed: when so many processes died in the block that images cannot be the reason.
    """

    def __init__(self, channel: Channel, run_id: str, image_ids: list[str]) -> None:
        block = hashlib.blake2b("".join(image_ids).encode(), digest_size=8).hexdigest()
        self._channel = channel
        self._key = f"suspects/{run_id}/{block}"
        record = (channel.read(self._key) or [{}])[0]
        self.deaths: int = record.get("begun", 0)
        self._died: dict[str, int] = record.get("died", {})
        if alone := record.get("alone"):
            self._died[alone] = self._died.get(alone, 0) + 1
        if self.deaths >= MOST_DEATHS:
            raise RunFailed(
                f"{self.deaths} workers died while they processed {len(image_ids)} images. Check that each node has "
                "enough memory for its workers"
            )
        self._publish(begun=self.deaths + 1)

    def name(self, image_id: str) -> None:
        """Record that the process works on this image alone."""
        self._publish(begun=self.deaths + 1, alone=image_id)

    def is_accused(self, image_id: str) -> bool:
        """Return whether ACCUSED_AFTER processes died while they worked on this image alone."""
        return self._died.get(image_id, 0) >= ACCUSED_AFTER

    def clear(self) -> None:
        """Delete the record of a finished block."""
        self._channel.delete(self._key)

    def _publish(self, **state: Any) -> None:
        self._channel.publish(self._key, {**state, "died": self._died})
