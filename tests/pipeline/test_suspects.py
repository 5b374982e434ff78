"""Suspects: which image is blamed for the end of a process."""

import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagemill.pipeline.errors import RunFailed
from imagemill.pipeline.suspects import MOST_DEATHS, Suspects
from imagemill.pipeline.watchdog import Step

LIMIT_S = 600.0
BATCH = 3


class Memory:
    """A channel that keeps values as JSON, like Ray's store."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def publish(self, key: str, content: dict[str, Any]) -> None:
        self.values[key] = json.dumps(content)

    def read(self, prefix: str) -> list[dict[str, Any]]:
        return [json.loads(value) for key, value in self.values.items() if key.startswith(prefix)]

    def delete(self, prefix: str) -> None:
        self.values = {key: value for key, value in self.values.items() if not key.startswith(prefix)}


class Died(Exception):
    """The end of a simulated process."""


class Block:
    """A block whose images are processed by simulated workers.

    Args:
        images: image → what it does to its process: nothing (`ok`), kill it (`kills`), block a stage (`decode`, `model`), or
            keep the GIL (`hangs`).
    """

    def __init__(self, images: dict[str, str]) -> None:
        self.images, self.channel, self.now_s, self.attempts = images, Memory(), 1e9, 0

    def suspects(self) -> Suspects:
        return Suspects(self.channel, "run", list(self.images), LIMIT_S)

    def attempt(self) -> dict[str, str]:
        """Process the block; return image → class of its reject, or `ok`.

        Raises:
            Died: when an image ends the process.
        """
        self.attempts += 1
        suspects = self.suspects()
        verdicts = {image: verdict[1] for image in self.images if (verdict := suspects.verdict(image))}
        rest = [image for image in self.images if image not in verdicts]
        size = 1 if suspects.is_cause_unknown else BATCH
        for first in range(0, len(rest), size):
            batch = rest[first : first + size]
            if suspects.is_cause_unknown:
                suspects.name(batch[0])
            for image in batch:
                self.now_s += 1
                self.end_process(suspects, self.images[image], [image])
            if any(self.images[image] == "model" for image in batch):
                self.end_process(suspects, "stuck", batch)
        suspects.clear()
        return {image: verdicts.get(image, "ok") for image in self.images}

    def end_process(self, suspects: Suspects, kind: str, batch: list[str]) -> None:
        if kind == "kills":
            raise Died
        if kind == "hangs":
            self.now_s += LIMIT_S + 10
            raise Died
        if kind in ("decode", "stuck"):
            self.now_s += LIMIT_S * len(batch)
            suspects.record_timeouts([Step(kind, tuple(batch), LIMIT_S * len(batch), 0)])
            raise Died

    def process(self) -> dict[str, str]:
        """Process the block again until it is finished, like an engine."""
        with mock.patch("time.time", side_effect=lambda: self.now_s):
            while True:
                try:
                    return self.attempt()
                except Died:
                    self.now_s += 5  # A new worker starts.


CLASSES = {"ok": "ok", "kills": "KilledProcess", "decode": "Timeout", "model": "Timeout", "hangs": "Timeout"}


@given(st.lists(st.sampled_from(["ok", "ok", "ok", *CLASSES]), min_size=1, max_size=14))
def test_each_image_gets_what_it_deserves(kinds: list[str]) -> None:
    images = {f"{number:02d}": kind for number, kind in enumerate(kinds)}
    block = Block(images)
    assert block.process() == {image: CLASSES[kind] for image, kind in images.items()}
    assert block.channel.values == {}
    deaths = {"ok": 0, "kills": 2, "hangs": 2, "decode": 1, "model": 1}
    assert block.attempts <= sum(deaths[kind] for kind in kinds) + 2


def test_timeout_of_one_image_does_not_slow_down_its_neighbours() -> None:
    """The image is known after one timeout, so the rest is processed in batches."""
    block = Block({"a": "ok", "b": "decode", "c": "ok"})
    with pytest.raises(Died):
        block.attempt()
    suspects = block.suspects()
    assert not suspects.is_cause_unknown
    assert [bool(suspects.verdict(image)) for image in "abc"] == [False, True, False]


def test_timeout_of_a_batch_is_followed_by_single_images() -> None:
    block = Block({"a": "ok", "b": "model", "c": "ok"})
    with pytest.raises(Died):
        block.attempt()
    suspects = block.suspects()
    assert suspects.is_cause_unknown
    assert [suspects.verdict(image) for image in "abc"] == [None] * 3


def test_verdicts_say_where_the_image_was_stuck_and_what_to_do() -> None:
    channel = Memory()
    Suspects(channel, "run", ["a"], 600).record_timeouts([Step("fetch", ("a",), 2400, 0)])
    stage, error_class, message = Suspects(channel, "run", ["a"], 600).verdict("a") or ("", "", "")
    assert (stage, error_class) == ("fetch", "Timeout")
    assert message.startswith("fetch did not end within 2400 s. Check the file.")
    assert message.endswith("raise the limit: --set image_timeout_s=6000")


@pytest.mark.parametrize(("seconds", "error_class"), [(LIMIT_S - 1, "KilledProcess"), (LIMIT_S, "Timeout")])
def test_death_after_the_limit_is_a_timeout(seconds: float, error_class: str) -> None:
    """Native code that keeps the GIL leaves no record but the time at which the process began the image."""
    channel = Memory()
    with mock.patch("time.time") as now:
        for attempt in range(3):
            now.return_value = attempt * seconds
            suspects = Suspects(channel, "run", ["a"], LIMIT_S)
            verdict = suspects.verdict("a")
            suspects.name("a")
            assert (verdict and verdict[:2]) == (("process", error_class) if attempt == 2 else None)


def test_block_with_repeated_deaths_ends_the_run() -> None:
    """Ray retries a block MOST_DEATHS times; the last attempt ends the run with an explanation."""
    channel = Memory()
    for _ in range(MOST_DEATHS):
        Suspects(channel, "deaths", ["a"], LIMIT_S)
    with pytest.raises(RunFailed, match="enough memory for its workers"):
        Suspects(channel, "deaths", ["a"], LIMIT_S)
