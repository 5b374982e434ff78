"""Races of threads, for stores that must let exactly one of them win."""

import threading

from imagemill.pipeline.storage import Store

RACERS = 8


def race_to_create(url: str, path: str) -> list[bytes]:
    """Let threads create one file at once, each with its own content; return the contents of those that succeeded."""
    winners: list[bytes] = []
    start = threading.Barrier(RACERS)

    def race(content: bytes) -> None:
        start.wait()
        if Store(url).create(path, content):
            winners.append(content)

    racers = [threading.Thread(target=race, args=(str(number).encode(),)) for number in range(RACERS)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    return winners
