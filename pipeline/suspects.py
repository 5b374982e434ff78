"""Identify the image that kills or blocks its process, from the records that processes publish before they die."""

import hashlib
import time
from collections.abc import Sequence
from typing import Any

from imagemill.pipeline.channel import Channel
from imagemill.pipeline.errors import RunFailed
from imagemill.pipeline.watchdog import Step

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
        image_timeout_s: time limit of an image, in seconds.

    Raises:
        RunFailed: when so many processes died in the block that images cannot be the reason.
    """

    def __init__(self, channel: Channel, run_id: str, image_ids: list[str], image_timeout_s: float) -> None:
        block = hashlib.blake2b("".join(image_ids).encode(), digest_size=8).hexdigest()
        self._channel = channel
        self._key = f"suspects/{run_id}/{block}"
        self._image_timeout_s = image_timeout_s
        record = (channel.read(self._key) or [{}])[0]
        deaths: int = record.get("begun", 0)
        self._died = {image_id: list(seconds) for image_id, seconds in record.get("died", {}).items()}
        """Image → for each process that died while it worked on this image alone, the seconds until the next one began."""
        self._timeouts: dict[str, tuple[str, float]] = dict(record.get("timeouts", {}))
        """Image → stage and time limit of a step that was over its limit and had no other image."""
        self._explained: int = record.get("explained", 0)
        """Deaths whose images are all in `_timeouts`."""
        if alone := record.get("alone"):
            self._died.setdefault(alone, []).append(time.time() - record["since"])
        if deaths >= MOST_DEATHS:
            raise RunFailed(
                f"{deaths} workers died or were stuck while they processed {len(image_ids)} images. Check that each node "
                "has enough memory for its workers and can read the input"
            )
        self._begun = deaths + 1
        self.is_cause_unknown = deaths > self._explained
        """Whether a process died for an unknown reason, so that the images must be processed one at a time."""
        self._publish()

    def name(self, image_id: str) -> None:
        """Record that the process works on this image alone."""
        # Another node may read the record, so the time is that of the wall clock.
        self._publish(alone=image_id, since=time.time())

    def record_timeouts(self, steps: Sequence[Step]) -> None:
        """Record that this process ends because steps are over their time limit.

        A step with one image identifies the image. After a step with several images, the block is processed one image at a
        time.
        """
        for step in steps:
            if len(step.image_ids) == 1:
                self._timeouts[step.image_ids[0]] = step.stage, step.limit_s
        self._explained += all(len(step.image_ids) == 1 for step in steps)
        self._publish()

    def verdict(self, image_id: str) -> tuple[str, str, str] | None:
        """Return the stage, class and reason with which an image is rejected; None if it must be processed.

        One timeout of an image alone is enough. A death may have another cause, so ACCUSED_AFTER deaths accuse an image.
        """
        limit_s = self._image_timeout_s
        advice = f"Check the file. If it needs more time, raise the limit: --set image_timeout_s={10 * limit_s:g}"
        if image_id in self._timeouts:
            stage, step_limit_s = self._timeouts[image_id]
            return stage, "Timeout", f"{stage} did not end within {step_limit_s:g} s. {advice}"
        seconds = self._died.get(image_id, [])
        if len(seconds) < ACCUSED_AFTER:
            return None
        if min(seconds) >= limit_s:
            # Native code kept the GIL, so the watchdog could neither record the stage nor end the process itself.
            message = f"its process hung for {limit_s:g} s, twice, while it processed this image alone"
            return "process", "Timeout", f"{message}. {advice}"
        message = "its process died twice while it processed this image alone (a decoder crashed, or memory ran out)"
        return "process", "KilledProcess", message

    def clear(self) -> None:
        """Delete the record of a finished block."""
        self._channel.delete(self._key)

    def _publish(self, **state: Any) -> None:
        state |= {"begun": self._begun, "explained": self._explained, "died": self._died, "timeouts": self._timeouts}
        self._channel.publish(self._key, state)
