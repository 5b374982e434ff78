import hashlib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import EndpointConnectionError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from imagemill.pipeline.account import account, drop_duplicates
from imagemill.pipeline.errors import VerificationError
from imagemill.pipeline.output.parts import SUPERSEDED, columns_as_lists, list_parts, read_parts
from imagemill.pipeline.output.snapshot import select_newest_rows
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.plan import Plan
from imagemill.pipeline.schema import REFERENCE, part_name
from imagemill.pipeline.storage import Store
from tests.support.rows import DAY, SCHEMA, Pair, pairs_of, put, reject, row


def todo_of(*pairs: Pair) -> pa.Table:
    return pa.Table.from_pylist([{"image_id": i, "version": v} for i, v in pairs], REFERENCE)


def plan_over(*pairs: Pair, parts: set[str] = frozenset(), redone_ids: str = "") -> Plan:
    images = pa.table({"image_id": pa.array(list(redone_ids), pa.string())})
    return Plan(
        todo_of(*pairs),
        0,
        Counter(),
        0,
        0,
        images,
        set(parts),
        images.slice(0, 0),
        is_unrelated=False,
        fencing_token=0,
        rows=0,
    )


def drop_all_duplicates(output: Store) -> int:
    return drop_duplicates(output, plan_over(), list_parts(output, "results"))


def with_images(output: Store, *names: str) -> str:
    rows = []
    for name in names:
        data = f"the pixels of {name}".encode()
        output.write(f"images/{name}", data)
        columns = {
            "output_uri": f"images/{name}",
            "output_sha256": hashlib.sha256(data).hexdigest(),
            "output_bytes": len(data),
        }
        rows.append(row((name, "v"), **columns))
    return put(output, rows)


@pytest.fixture
def output(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


# A part is a set of rows with one fence. Its name depends on the rows alone, so the same rows with another fence
# are the same part.
PARTS = st.lists(
    st.tuples(st.sets(st.tuples(st.sampled_from("abcd"), st.sampled_from("vw")), min_size=1, max_size=4), st.integers(1, 3)),
    max_size=6,
)


@pytest.mark.parametrize("count", [30, pytest.param(100, marks=pytest.mark.chaos)])
def test_account_drops_only_duplicate_rows(count: int) -> None:
    known_case = example([({("a", "v"), ("b", "v")}, 2), ({("b", "v")}, 3), ({("a", "v")}, 1)])
    given(PARTS)(settings(max_examples=count)(known_case(check_duplicates)))()


def check_duplicates(parts: list[tuple[set[Pair], int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        output = Store(folder)
        for pairs, fence in parts:
            put(output, [row(pair, fence) for pair in sorted(pairs)])
        original_pairs = pairs_of(output)
        drop_count = drop_all_duplicates(output)
        assert pairs_of(output) == sorted(set(original_pairs))
        assert drop_count == len(original_pairs) - len(set(original_pairs))
        assert drop_all_duplicates(output) == 0


def test_account_keeps_one_of_two_rows_in_a_part(output: Store) -> None:
    put(output, [row(("a", "v")), row(("a", "v")), row(("b", "v"))])
    drop_all_duplicates(output)
    assert pairs_of(output) == [("a", "v"), ("b", "v")]


def test_account_keeps_the_row_of_the_later_holder(output: Store) -> None:
    put(output, [row(("a", "v"), 1, run_id="old"), row(("b", "v"), 1, run_id="old")])
    put(output, [row(("a", "v"), 2, run_id="new")])
    assert drop_all_duplicates(output) == 1
    rows = read_parts(output, list_parts(output, "results"), ["image_id", "run_id"])
    assert dict(zip(*columns_as_lists(rows, ["image_id", "run_id"]), strict=True)) == {"a": "new", "b": "old"}


def test_part_without_duplicates_is_renamed(output: Store) -> None:
    put(output, [row(("a", "v"), 1), row(("b", "v"), 1, psnr_db=41.0)])
    put(output, [row(("a", "v"), 2)])
    drop_all_duplicates(output)
    for path in list_parts(output, "results"):
        table = pq.read_table(output.full(path))
        assert table.schema.equals(SCHEMA)
        assert path == f"results/{part_name(table)}"
    assert verify(output).problems == []


def test_account_replaces_an_older_row(output: Store) -> None:
    put(output, [row(("a", "v"), 1), row(("b", "v"), 1)])
    older = set(list_parts(output, "results"))
    put(output, [row(("a", "v"), 3)])
    new = [path for path in list_parts(output, "results") if path not in older]
    assert drop_duplicates(output, plan_over(parts=older, redone_ids="a"), new) == 1
    assert pairs_of(output) == [("a", "v"), ("b", "v")]
    assert read_parts(output, list_parts(output, "results"), ["fence"])["fence"].to_pylist().count(3) == 1


def test_account_keeps_versions_of_an_image(output: Store) -> None:
    put(output, [row(("a", "v")), row(("a", "w"))])
    assert drop_all_duplicates(output) == 0
    assert verify(output).problems == []


def test_account_adds_up_rows_and_rejects(output: Store) -> None:
    old = put(output, [row(("old", "v"), psnr_db=99.0)])
    put(output, [row(("a", "v"), psnr_db=30.0), row(("b", "v"), psnr_db=40.0)])
    put(output, [row(("c", "v"), psnr_db=float("inf"))])
    reject(output, ("d", "v"))
    reject(output, ("e", "v"), ("f", "v"), error_class="EmptyFile")
    summary = account(output, plan_over(*((i, "v") for i in "abcdef"), parts={old}), ["psnr_db"])
    assert (summary.ok, summary.rejected, summary.doubles_dropped) == (3, 3, 0)
    assert summary.reasons == {"EmptyFile": 2, "BrokenImage": 1}
    assert summary.pixels == 3 * 32 * 24
    assert summary.quality == {"psnr_db": 35.0}
    new = [p for p in list_parts(output, "results") if p != old]
    assert summary.parquet_bytes == sum(Path(output.full(p)).stat().st_size for p in new)


def test_account_counts_a_duplicate_row_once(output: Store) -> None:
    put(output, [row(("a", "v"), 1), row(("b", "v"), 1)])
    put(output, [row(("a", "v"), 2)])
    summary = account(output, plan_over(("a", "v"), ("b", "v")), ["psnr_db"])
    assert (summary.ok, summary.rejected, summary.doubles_dropped, summary.pixels) == (2, 0, 1, 2 * 32 * 24)


def test_account_counts_row_and_reject_as_ok(output: Store) -> None:
    put(output, [row(("a", "v"))])
    reject(output, ("a", "v"))
    summary = account(output, plan_over(("a", "v")), [])
    assert (summary.ok, summary.rejected, summary.reasons) == (1, 0, {})


def test_account_of_nothing_is_empty(output: Store) -> None:
    summary = account(output, plan_over(), ["psnr_db"])
    assert (summary.ok, summary.rejected, summary.pixels, summary.parquet_bytes) == (0, 0, 0, 0)


def test_account_of_rejects_has_no_quality(output: Store) -> None:
    reject(output, ("a", "v"))
    summary = account(output, plan_over(("a", "v")), ["psnr_db"])
    assert (summary.ok, summary.rejected, summary.quality) == (0, 1, {})


@pytest.mark.parametrize("missing_pair", [("c", "v"), ("a", "w")])
def test_account_of_a_missing_image_is_an_error(output: Store, missing_pair: Pair) -> None:
    put(output, [row(("a", "v"))])
    reject(output, ("b", "v"))
    with pytest.raises(VerificationError, match="1 of 3 planned images"):
        account(output, plan_over(("a", "v"), ("b", "v"), missing_pair), ["psnr_db"])


def test_verify_accepts_a_complete_output(output: Store) -> None:
    with_images(output, "a.jpg", "x/b.png")
    put(output, [row(("c", "v"))])
    reject(output, ("d", "v"))
    verification = verify(output)
    assert (
        verification.images,
        verification.rows,
        verification.rejects,
        verification.files,
        verification.latents,
        verification.problems,
    ) == (3, 3, 1, 2, 3, [])


def test_verify_accepts_an_empty_output(output: Store) -> None:
    assert verify(output).problems == []


def test_verify_names_an_image_with_a_flipped_byte(output: Store) -> None:
    with_images(output, "a.jpg", "x/b.png")
    path = Path(output.full("images/x/b.png"))
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert verify(output).problems == ["images/x/b.png: its sha256 differs from that of its row"]


def test_verify_names_a_missing_image(output: Store) -> None:
    with_images(output, "a.jpg", "x/b.png")
    output.delete("images/a.jpg")
    assert verify(output).problems == ["images/a.jpg: missing"]


def test_verify_reads_nothing_outside_of_output(tmp_path: Path) -> None:
    output = Store(str(tmp_path / "out"))
    with_images(output, "../../elsewhere.png")
    assert (tmp_path / "elsewhere.png").exists()
    assert verify(output).problems == ["images/../../elsewhere.png: the path leaves OUTPUT"]


def test_verify_names_each_unreadable_file(tmp_path: Path) -> None:
    class Silent(Store):
        def read(self, path: str) -> bytes:
            if path == "images/a.jpg":
                raise EndpointConnectionError(endpoint_url="http://s3")
            return super().read(path)

    output = Silent(str(tmp_path))
    with_images(output, "a.jpg", "b.jpg", "c.jpg")
    Path(output.full("images/b.jpg")).unlink()
    os.mkfifo(output.full("images/b.jpg"))
    output.delete("images/c.jpg")
    silent_problem, pipe_problem, missing_pair = verify(output).problems
    assert silent_problem.startswith("images/a.jpg: cannot be read: EndpointConnectionError")
    assert pipe_problem.startswith("images/b.jpg: cannot be read: OSError")
    assert "a pipe, socket or device" in pipe_problem
    assert missing_pair == "images/c.jpg: missing"


def test_verify_advises_about_damaged_claims(output: Store) -> None:
    with_images(output, "a.jpg")
    output.write(f"runs/20260101T000000Z-abcdef/{SUPERSEDED}", b"PAR1")
    [problem] = verify(output).problems
    assert problem.startswith(output.full("runs/20260101T000000Z-abcdef/superseded.parquet: damaged"))
    assert "Restore it. If you cannot, delete it" in problem
    assert problem.endswith("The next run processes those images again")
    assert "move it out" not in problem


def test_verify_checks_only_the_file_of_the_newest_row(output: Store) -> None:
    data = b"new"
    output.write("images/a.jpg", data)
    columns = {"output_uri": "images/a.jpg", "output_sha256": hashlib.sha256(data).hexdigest()}
    put(output, [row(("a", "v"), output_uri="images/a.jpg", output_sha256="older")])
    put(output, [row(("a", "w"), 2, encoded_at=DAY.replace(year=2027), **columns)])
    assert verify(output).problems == []


@pytest.mark.parametrize("folder", ["results", "rejects"])
@pytest.mark.parametrize(
    "damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"not parquet", lambda d: d[:-1] + b"x"]
)
def test_verify_names_an_unreadable_part(output: Store, folder: str, damage: Any) -> None:
    put(output, [row(("a", "v"))])
    put(output, [row(("b", "v"))])
    reject(output, ("c", "v"))
    path = list_parts(output, folder)[0]
    output.write(path, damage(output.read(path)))
    [problem] = verify(output).problems
    assert problem.startswith(f"{path}: cannot be read")


def test_verify_names_a_row_in_two_parts(output: Store) -> None:
    put(output, [row(("a", "v")), row(("b", "v"))])
    put(output, [row(("a", "v"))])
    assert verify(output).problems == ["image a version v: 2 rows"]


def test_verify_names_a_changed_latent(output: Store) -> None:
    foreign_row = row(("b", "v"))
    foreign_row["latent"] = foreign_row["latent"] ^ np.uint8(1)
    path = put(output, [row(("a", "v")), foreign_row])
    [problem] = verify(output).problems
    assert problem.startswith(f"{path} row 1")


def test_verify_names_a_foreign_parquet_file(output: Store) -> None:
    put(output, [row(("a", "v"))])
    output.write("results/foreign.parquet", parquet_bytes(pa.table({"x": [1]}), 1))
    [problem] = verify(output).problems
    assert problem.startswith("results/foreign.parquet")


def iterate_flips(output: Store, phase: int) -> Iterator[pa.Table]:
    """Flip one byte of the only part, at a sample of all positions; yield the original rows."""
    columns = {"rel_path": "a.jpg", "task": "compress", "model_id": "m", "run_id": "r", "checkpoint_sha256": "c" * 64}
    path = put(output, [row((f"{n:032x}", f"{n + 7:032x}"), **columns) for n in range(3)])
    whole, rows = output.read(path), pq.read_table(output.full(path))
    for offset in range(phase, len(whole), 20):
        output.write(path, whole[:offset] + bytes([whole[offset] ^ 0x21]) + whole[offset + 1 :])
        yield rows


@pytest.mark.parametrize("phase", [0, 10, *(pytest.param(phase, marks=pytest.mark.chaos) for phase in (5, 15))])
def test_verify_survives_any_flipped_byte_of_a_part(output: Store, phase: int) -> None:
    outcomes = [bool(verify(output).problems) for _ in iterate_flips(output, phase)]
    assert sum(outcomes) > len(outcomes) / 2


def test_verify_survives_an_impossible_time(output: Store) -> None:
    path = put(output, [row(("a", "v"))])
    table = pq.read_table(output.full(path))
    column_index = table.schema.get_field_index("encoded_at")
    impossible_time = pa.array([2**57], pa.int64()).cast(table.schema.field(column_index).type)
    output.write(path, parquet_bytes(table.set_column(column_index, "encoded_at", impossible_time), 3))
    [problem, *_] = verify(output).problems
    assert problem.startswith(f"{path}: cannot be read")


def test_verify_detects_a_part_with_other_rows(output: Store) -> None:
    path = put(output, [row(("a", "v"))])
    output.write(path, output.read(put(output, [row(("b", "v"))], "elsewhere.parquet")))
    output.delete("results/elsewhere.parquet")
    [problem] = verify(output).problems
    assert "the name does not match the rows" in problem


def test_newest_row_has_the_highest_fencing_token() -> None:
    rows = [
        {"image_id": "a", "encoded_at": DAY, "fence": 9, "part": "p"},
        {"image_id": "a", "encoded_at": DAY.replace(year=2027), "fence": 1, "part": "q"},
        {"image_id": "b", "encoded_at": DAY, "fence": 1, "part": "p"},
        {"image_id": "b", "encoded_at": DAY, "fence": 2, "part": "q"},
    ]
    newest = select_newest_rows(pa.Table.from_pylist(rows))
    assert sorted(zip(*columns_as_lists(newest, ["image_id", "part"]), strict=True)) == [("a", "p"), ("b", "q")]
