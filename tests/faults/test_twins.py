"""Two identical runs that start together: one works, the other reports that the output is held."""

from pathlib import Path

import pytest

from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.storage import Store
from tests.support.engines import ENGINES
from tests.support.run_processes import make_photos, start

ROUNDS, WITH_WORK = 20, 5
IGNORED = 300_000
"""Number of non-image files: listing them takes longer than the delay between the two starts."""


@pytest.mark.chaos
@pytest.mark.parametrize("engine", ENGINES)
def test_run_is_refused_while_its_twin_works(engine: str, tmp_path: Path, crops, figure) -> None:
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    make_photos(source, 3, crops)
    for number in range(IGNORED):
        if number % 1_000 == 0:
            (tmp_path / f"in/notes/{number}").mkdir(parents=True)
        (tmp_path / f"in/notes/{number - number % 1_000}/{number}.txt").touch()
    for number in range(ROUNDS):
        if number % (ROUNDS // WITH_WORK) == 0:
            source.write(f"new/{number}.png", encode_rgb(crops[number][:48, :48], "PNG"))
        twins = [start(source, output, engine=engine) for _ in range(2)]
        log_by_code = {twin.wait(): twin.stderr.read().decode() for twin in twins}
        assert sorted(log_by_code) == [0, 4], log_by_code
        assert "another run" in log_by_code[4]
        verification = verify(output)
        assert (verification.problems, verification.rows) == ([], 4 + number // (ROUNDS // WITH_WORK))
    figure(
        f"{engine}: two identical runs started together, {ROUNDS} times, {WITH_WORK} of them with a new image",
        "one works, the other exits 4, each time",
    )
