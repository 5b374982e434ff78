from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rows import SCHEMA, pairs_of, put, reject, row

from pipeline.config import RunConfig
from pipeline.output.committed import compactions, part_paths, read_part, read_parts
from pipeline.output.compact import ENOUGH, MERGED_BYTES, SMALL_BYTES, compact
from pipeline.output.verify import verify
from pipeline.run import run
from pipeline.schema import pack_latent
from pipeline.storage import Store


class Killed(BaseException):
    pass


class Mortal(Store):
    """A store whose user dies at its n-th change."""

    changes_left = 0

    def change(self) -> None:
        if not self.changes_left:
            raise Killed
        self.changes_left -= 1

    def write(self, *args, **more) -> None:
        self.change()
        super().write(*args, **more)

    def delete(self, path: str) -> None:
        self.change()
        super().delete(path)


def fill(output: Store, parts: int, first: int = 0) -> set[str]:
    for n in range(first, first + parts):
        put(output, [row((f"{n}a", "v"), fence=n + 1), row((f"{n}b", "v"), fence=n + 1)])
        if n % 2:
            reject(output, (f"{n}r", "v"))
    return all_parts(output)


def all_parts(output: Store) -> set[str]:
    return {path for folder in ("results", "rejects") for path in part_paths(output, folder)}


def files(output: Store, folder: str) -> list[str]:
    return sorted(e.path for e in output.entries(folder))


def test_many_small_parts_become_one_and_no_row_changes(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    parts = fill(output, 2 * ENOUGH)
    columns = SCHEMA.names
    before = read_parts(output, part_paths(output, "results"), columns).drop_columns("part").sort_by("image_id")
    assert compact(output, parts, 3) == 3 * ENOUGH
    assert len(files(output, "results")) == len(files(output, "rejects")) == 1
    after = read_parts(output, part_paths(output, "results"), columns).drop_columns("part").sort_by("image_id")
    assert after.equals(before)
    seen = verify(output)
    assert (seen.problems, seen.rows, seen.rejects) == ([], 4 * ENOUGH, ENOUGH)
    # The note stays for those who list meanwhile; the next run takes it away.
    assert len(compactions(output)) == 2
    assert compact(output, all_parts(output), 3) == 0
    assert compactions(output) == []


def test_few_parts_large_parts_and_those_of_this_run_stay(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    few = fill(output, ENOUGH - 1)
    assert compact(output, few, 3) == 0
    noise = np.random.default_rng(0).integers(-128, 128, (1, 1100, 1000)).astype(np.int8)
    large = put(output, [row(("large", "v"), fence=1000) | pack_latent(noise)])
    assert output.entry(large).size > SMALL_BYTES
    assert compact(output, all_parts(output), 3) == 0
    before = fill(output, 1, first=ENOUGH - 1)
    late = put(output, [row(("late", "v"), fence=1001)])
    assert compact(output, before, 3) == ENOUGH
    assert {large, late} < all_parts(output)
    assert len(part_paths(output, "results")) == 3


def test_merged_parts_are_of_a_size(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    for n in range(ENOUGH):
        noise = np.random.default_rng(n).integers(-128, 128, (1, 300, 1000)).astype(np.int8)
        put(output, [row((f"{n}", "v")) | pack_latent(noise)])
    compact(output, all_parts(output), 3)
    sizes = [e.size for e in output.entries("results")]
    assert len(sizes) == 3
    assert max(sizes) < MERGED_BYTES + SMALL_BYTES
    assert len(pairs_of(output)) == ENOUGH


@given(data=st.data())
@settings(max_examples=60)
def test_killed_anywhere_it_loses_nothing_and_doubles_nothing(tmp_path_factory, data) -> None:
    root = str(tmp_path_factory.mktemp("out"))
    output, mortal = Store(root), Mortal(root)
    with patch("pipeline.output.compact.ENOUGH", 4):
        parts = fill(output, 8)
        pairs = pairs_of(output)
        for _ in range(3):
            # Two notes, two parts, 8 + 4 deletes; what the run before left, and the notes, go first.
            mortal.changes_left = data.draw(st.integers(0, 20))
            with suppress(Killed):
                compact(mortal, parts, 3)
            assert pairs_of(output) == pairs
            seen = verify(output)
            assert (seen.problems, seen.rejects) == ([], 4)
            parts = all_parts(output)
        compact(output, parts, 3)
        compact(output, all_parts(output), 3)
    assert pairs_of(output) == pairs
    assert len(files(output, "results")) == len(files(output, "rejects")) == 1
    assert files(output, "runs") == []


def test_a_listing_that_is_torn_is_made_again(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    parts = fill(output, ENOUGH)
    pairs = pairs_of(output)

    class Torn(Store):
        """The first page of its first listing is older than a compaction, the second younger."""

        torn = False

        def entries(self, path: str = ""):
            if path == "results" and not self.torn:
                self.torn = True
                older = list(super().entries(path))
                compact(output, parts, 3)
                younger = {e.path for e in super().entries(path)}
                return iter([e for e in older if e.path in younger])
            return super().entries(path)

    torn = Torn(str(tmp_path))
    assert pairs_of(torn) == pairs


def test_a_damaged_part_stays_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = Store(str(tmp_path))
    parts = fill(output, ENOUGH)
    damaged = sorted(path for path in parts if path.startswith("results"))[3]
    output.write(damaged, output.read(damaged)[:-20])
    assert compact(output, parts, 3) == 0
    assert f"{ENOUGH} small parts of results stay" in caplog.text
    assert damaged in caplog.text
    assert len(files(output, "results")) == ENOUGH


def test_a_run_merges_what_former_ones_left(tmp_path: Path, crops: list[np.ndarray]) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(crops[0]).save(tmp_path / "in/photo.png")
    output = Store(str(tmp_path / "out"))
    for n in range(ENOUGH):
        put(output, [row((f"{n:032x}", "v"), task="compress")])
    config = RunConfig(task="compress", input=str(tmp_path / "in"), output=output.url)
    assert run(config)["ok"] == 1
    assert sorted(len(read_part(output, path, None)) for path in part_paths(output, "results")) == [1, ENOUGH]
    assert len(compactions(output)) == 1
    assert run(config)["planned"] == 0
    assert compactions(output) == []
