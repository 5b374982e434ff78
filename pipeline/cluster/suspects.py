"""Which image killed its process: told by what processes leave in Ray's key-value store before they die."""

import hashlib
from typing import Any

from imagemill.pipeline.cluster.tally import forget, publish, published
from imagemill.pipeline.errors import RunFailed

ACCUSED_AFTER = 2
"""Deaths with one image alone in work: one may be chance, a machine out of memory or a kill from outside."""
TRIED_BY_RUNS = 3
"""Runs that try an accused image: what killed it may have been memory that others took. Then it waits to be asked for."""
MOST_DEATHS = 60


class Suspects:
    """The deaths of one block of a run: each process that begins it counts one, until `clear`.

    Raises: RunFailed when so many processes died in one block that images cannot be the reason.
    """

    def __init__(self, run_id: str, image_ids: list[str]) -> None:
        block = hashlib.blake2b("".join(image_ids).encode(), digest_size=8).hexdigest()
        self._key = f"suspects/{run_id}/{block}"
        left = (published(self._key) or [{}])[0]
        self.deaths: int = left.get("begun", 0)
        self._died: dict[str, int] = left.get("died", {})
        if alone := left.get("alone"):
            self._died[alone] = self._died.get(alone, 0) + 1
        if self.deaths >= MOST_DEATHS:
            raise RunFailed(f"{self.deaths} processes died over {len(image_ids)} images; is there memory for an actor?")
        self._publish(begun=self.deaths + 1)

    def name(self, image_id: str) -> None:
        """Say that this image alone is in work."""
        self._publish(begun=self.deaths + 1, alone=image_id)

    def accused(self, image_id: str) -> bool:
        """Whether processes died of this image."""
        return self._died.get(image_id, 0) >= ACCUSED_AFTER

    def clear(self) -> None:
        """The block is done."""
        forget(self._key)

    def _publish(self, **state: Any) -> None:
        publish(self._key, {**state, "died": self._died})
