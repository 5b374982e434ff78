import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagemill.pipeline.account import drop_duplicates
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.output.compact import MERGED_BYTES, MIN_SMALL_PARTS, SMALL_BYTES, compact
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.part_replacement import finish_interrupted_merges, replace_parts
from imagemill.pipeline.output.parts import list_parts, read_part, read_parts, read_replacement_notes
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.plan import Plan
from imagemill.pipeline.run import run
from imagemill.pipeline.schema import REFERENCE, pack_latent
from imagemill.pipeline.storage import Store
from tests.support.rows import SCHEMA, pairs_of, put, reject, row


class Killed(BaseException):
    pass


class InterruptedStore(Store):
    """A store that raises at its n-th change, like a process that is killed."""

    changes_left = 0

    def count_change(self) -> None:
        if not self.changes_left:
            raise Killed
        self.changes_left -= 1

    def write(self, *args, **more) -> None:
        self.count_change()
        super().write(*args, **more)

    def delete(self, path: str) -> None:
        self.count_change()
        super().delete(path)


def check_lease() -> None:
    """Confirm the lease: no other run took over the output."""


def fill(output: Store, parts: int, first: int = 0) -> set[str]:
    for n in range(first, first + parts):
        put(output, [row((f"{n}a", "v"), fence=n + 1), row((f"{n}b", "v"), fence=n + 1)])
        if n % 2:
            reject(output, (f"{n}r", "v"))
    return all_parts(output)


def all_parts(output: Store) -> set[str]:
    return {path for folder in ("results", "rejects") for path in list_parts(output, folder)}


def files(output: Store, folder: str) -> list[str]:
    return sorted(e.path for e in output.entries(folder))


def test_compact_merges_small_parts_without_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = Store(str(tmp_path))
    parts = fill(output, 2 * MIN_SMALL_PARTS)
    columns = SCHEMA.names
    rows_before = read_parts(output, list_parts(output, "results"), columns).drop_columns("part").sort_by("image_id")
    assert compact(output, parts, 3, check_lease) == 3 * MIN_SMALL_PARTS
    assert len(files(output, "results")) == len(files(output, "rejects")) == 1
    rows_after = read_parts(output, list_parts(output, "results"), columns).drop_columns("part").sort_by("image_id")
    assert rows_after.equals(rows_before)
    verification = verify(output)
    assert (verification.problems, verification.rows, verification.rejects) == ([], 4 * MIN_SMALL_PARTS, MIN_SMALL_PARTS)
    # The notes stay for processes that are listing the output at this time.
    finish_interrupted_merges(output)
    assert len(read_replacement_notes(output)) == 2
    monkeypatch.setattr("imagemill.pipeline.output.part_replacement.GRACE_SECONDS", 0)
    finish_interrupted_merges(output)
    assert read_replacement_notes(output) == []


@pytest.mark.parametrize("skew", [-86400, 86400])
@pytest.mark.parametrize("any_url", ["local", "moto"], indirect=True)
def test_compact_note_stays_an_hour_by_the_store_clock(any_url: str, skew: float) -> None:
    """The clock of the machine that wrote the note may be wrong by a day."""
    output = Store(any_url)
    with (
        patch("imagemill.pipeline.output.part_replacement.time.time", lambda: 1.8e9 + skew),
        patch("imagemill.pipeline.output.compact.MIN_SMALL_PARTS", 2),
    ):
        compact(output, fill(output, 2), 3, check_lease)
    [(path, _), *_] = read_replacement_notes(output)
    finish_interrupted_merges(output)
    assert path in files(output, "runs")
    if output.local:
        old = time.time() - 4000
        os.utime(output.full(path), (old, old))
        finish_interrupted_merges(output)
        assert path not in files(output, "runs")


def test_compact_leaves_few_large_and_new_parts(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    few_parts = fill(output, MIN_SMALL_PARTS - 1)
    assert compact(output, few_parts, 3, check_lease) == 0
    noise = np.random.default_rng(0).integers(-128, 128, (1, 1100, 1000)).astype(np.int8)
    large_part = put(output, [row(("large", "v"), fence=1000) | pack_latent(noise)])
    assert output.entry(large_part).size > SMALL_BYTES
    assert compact(output, all_parts(output), 3, check_lease) == 0
    rows_before = fill(output, 1, first=MIN_SMALL_PARTS - 1)
    late_part = put(output, [row(("late", "v"), fence=1001)])
    assert compact(output, rows_before, 3, check_lease) == MIN_SMALL_PARTS
    assert {large_part, late_part} < all_parts(output)
    assert len(list_parts(output, "results")) == 3


def test_compact_makes_parts_of_equal_size(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    for n in range(MIN_SMALL_PARTS):
        noise = np.random.default_rng(n).integers(-128, 128, (1, 300, 1000)).astype(np.int8)
        put(output, [row((f"{n}", "v")) | pack_latent(noise)])
    compact(output, all_parts(output), 3, check_lease)
    sizes = [e.size for e in output.entries("results")]
    assert len(sizes) == 3
    assert max(sizes) < MERGED_BYTES + SMALL_BYTES
    assert len(pairs_of(output)) == MIN_SMALL_PARTS


def change_parts(output: Store, redone_images: list[str], fence: int) -> None:
    """Change parts like a run: replace some rows, drop the old ones, merge small parts."""
    finish_interrupted_merges(output)
    parts = all_parts(output)
    duplicate_images = [image for (image, _), count in Counter(pairs_of(output)).items() if count > 1]
    if redone_images:
        put(output, [row((image, "v"), fence=fence) for image in redone_images])
    redone_table, duplicate_table = (
        pa.table({"image_id": pa.array(images, pa.string())}) for images in (redone_images, duplicate_images)
    )
    plan = Plan(
        REFERENCE.empty_table(),
        0,
        Counter(),
        0,
        0,
        redone_table,
        parts,
        duplicate_table,
        is_unrelated=False,
        fencing_token=fence,
        rows=0,
    )
    drop_duplicates(output, plan, [path for path in list_parts(output, "results") if path not in parts])
    compact(output, parts, 3, check_lease)


@pytest.mark.parametrize("count", [15, pytest.param(80, marks=pytest.mark.chaos)])
def test_compact_killed_anywhere_keeps_each_row_once(tmp_path_factory, count: int) -> None:
    given(data=st.data())(settings(max_examples=count)(check_killed_compaction))(tmp_path_factory)


def check_killed_compaction(tmp_path_factory, data) -> None:
    root = str(tmp_path_factory.mktemp("out"))
    output, interrupted = Store(root), InterruptedStore(root)
    with patch("imagemill.pipeline.output.compact.MIN_SMALL_PARTS", 4):
        fill(output, 6)
        pairs = pairs_of(output)
        for fence in range(100, 104):
            interrupted.changes_left = data.draw(st.integers(0, 24))
            redone_images = data.draw(st.lists(st.sampled_from([image for image, _ in pairs]), max_size=4, unique=True))
            with suppress(Killed):
                change_parts(interrupted, redone_images, fence)
            assert sorted(set(pairs_of(output))) == pairs
            assert verify(output).rejects == 3
        with patch("imagemill.pipeline.output.part_replacement.GRACE_SECONDS", 0):
            change_parts(output, [], 104)
            finish_interrupted_merges(output)
    assert pairs_of(output) == pairs
    assert verify(output).problems == []
    assert files(output, "runs") == []


def test_replaced_name_may_come_back(tmp_path: Path) -> None:
    """A merged part that loses rows gets the name that a part had before the merge."""
    output = Store(str(tmp_path))
    first, second = (put(output, [row((name, "v"))]) for name in "ab")
    tables = {path: read_part(output, path, None) for path in (first, second)}
    replace_parts(output, "results", {first, second}, pa.concat_tables(tables.values()), 1)
    [merged] = list_parts(output, "results")
    replace_parts(output, "results", {merged}, tables[second], 1)
    assert list_parts(output, "results") == [second]
    finish_interrupted_merges(output)
    assert list_parts(output, "results") == [second]


def test_compact_repeats_an_inconsistent_listing(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    parts = fill(output, MIN_SMALL_PARTS)
    pairs = pairs_of(output)

    class TornListingStore(Store):
        """A store whose first listing begins before a compaction and ends after it."""

        is_torn = False

        def entries(self, path: str = ""):
            if path == "results" and not self.is_torn:
                self.is_torn = True
                older = list(super().entries(path))
                compact(output, parts, 3, check_lease)
                later_paths = {e.path for e in super().entries(path)}
                return iter([e for e in older if e.path in later_paths])
            return super().entries(path)

    torn_store = TornListingStore(str(tmp_path))
    assert pairs_of(torn_store) == pairs


def test_compact_explains_a_missing_merged_part(tmp_path: Path) -> None:
    output = Store(str(tmp_path))
    compact(output, fill(output, MIN_SMALL_PARTS), 3, check_lease)
    (merged_part,) = list_parts(output, "results")
    output.delete(merged_part)
    assert list_parts(output, "results") == []
    finish_interrupted_merges(output)
    assert read_replacement_notes(output) == []


def test_compact_leaves_a_damaged_part_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = Store(str(tmp_path))
    parts = fill(output, MIN_SMALL_PARTS)
    damaged_path = list_parts(output, "results")[3]
    output.write(damaged_path, output.read(damaged_path)[:-20])
    assert compact(output, parts, 3, check_lease) == MIN_SMALL_PARTS - 1
    assert f"{damaged_path}: a damaged part" in caplog.text
    assert len(list_parts(output, "results")) == 2


def test_compact_stops_without_the_lease(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = Store(str(tmp_path))
    with Lease(output) as lease:
        parts = fill(output, MIN_SMALL_PARTS)
        output.write("runs/lease/00000007.json", b"{}")
        assert compact(output, parts, 3, lease.check_held) == 0
    assert "another run took over" in caplog.text
    assert all_parts(output) == parts


def test_run_compacts_parts_of_former_runs(tmp_path: Path, crops: list[np.ndarray]) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(crops[0]).save(tmp_path / "in/photo.png")
    output = Store(str(tmp_path / "out"))
    for n in range(MIN_SMALL_PARTS):
        put(output, [row((f"{n:032x}", "v"), task="compress")])
    config = RunConfig(task="compress", input=str(tmp_path / "in"), output=output.url)
    assert run(config)["ok"] == 1
    assert sorted(len(read_part(output, path, None)) for path in list_parts(output, "results")) == [1, MIN_SMALL_PARTS]
    assert run(config)["planned"] == 0
