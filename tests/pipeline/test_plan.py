import os
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.plan import Plan, make_plan, split_blocks
from imagemill.pipeline.schema import REFERENCE, image_id, version_of
from imagemill.pipeline.sources.folder import list_folder
from imagemill.pipeline.storage import Store
from tests.support.planned_rows import PARAMS, SHA, etags, key, put

IMAGES = ["a.jpg", "b.PNG", "_c.webp", ".d.gif", "x/a.jpg", "x/_y/.z.tiff", "é ü.bmp", "a.jpg.png", "100%#.jpeg"]
IGNORED_FILES = ["notes.txt", "a.jpg.txt", "x/README", ".DS_Store", "jpg", "x/video.mp4"]
STATES = st.sampled_from(["new", "done", "done before it changed", "rejected", "transient", "rejected before it changed"])
UNFINISHED_STATES = {"todo", "done before it changed", "new", "transient", "rejected before it changed"}


def plan_input(source: Store, output: Store, *args: Any, **options: Any) -> Plan:
    return make_plan(list_folder(source), source, output, *args, **options)


def paths_of(plan: Plan) -> list[str]:
    return plan.todo["rel_path"].to_pylist()


def commit(source: Store, output: Store, **fields: Any) -> None:
    put(output, "rejects" if fields else "results", [key(p, e) | fields for p, e in etags(source).items()])


@pytest.fixture
def places(tmp_path: Path) -> tuple[Store, Store]:
    source = Store(str(tmp_path / "in"))
    for path in ("a.jpg", "x/b.png", "c.gif"):
        source.write(path, path.encode())
    return source, Store(str(tmp_path / "out"))


@given(
    st.dictionaries(st.sampled_from(IMAGES), STATES),
    st.sets(st.sampled_from(IGNORED_FILES)),
    st.booleans(),
    st.none() | st.integers(1, 5),
    st.integers(1, 4),
)
@settings(max_examples=60)
def test_plan_is_the_input_minus_committed_rows(
    states: dict[str, str], ignored_names: set[str], retry: bool, limit: int | None, rows: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source, output = Store(f"{folder}/in"), Store(f"{folder}/out")
        for path in [*states, *ignored_names]:
            source.write(path, path.encode())
        tag = etags(source)
        results = [key(p, tag[p]) for p, s in states.items() if s == "done"]
        results += [key(p, "an older etag") for p, s in states.items() if s == "done before it changed"]
        rejects = [key(p, tag[p]) | {"transient": False, "attempts": 2} for p, s in states.items() if s == "rejected"]
        rejects += [key(p, tag[p]) | {"transient": True, "attempts": 1} for p, s in states.items() if s == "transient"]
        rejects += [
            key(p, "an older etag") | {"transient": False, "attempts": 5}
            for p, s in states.items()
            if s == "rejected before it changed"
        ]
        for kind, committed in (("results", results), ("rejects", rejects)):
            for start in range(0, len(committed), rows):
                put(output, kind, committed[start : start + rows])
        plan = plan_input(source, output, SHA, PARAMS, retry_failed=retry, limit=limit)

        todo = {p for p, s in states.items() if s in ({"rejected", "transient"} if retry else UNFINISHED_STATES)}
        if limit is None:
            assert sorted(paths_of(plan)) == sorted(todo)
        assert set(paths_of(plan)) <= todo
        assert len(plan.todo) == min(len(todo), limit or len(todo))
        assert plan.todo.schema == REFERENCE
        for reference in plan.todo.to_pylist():
            path = reference["rel_path"]
            assert reference["image_id"] == image_id(path)
            assert reference["version"] == version_of(SHA, PARAMS)(tag[path])
            assert reference["size"] == len(path.encode())
            assert reference["source_uri"] == source.uri(path)
            assert reference["attempts"] == {"rejected": 2, "transient": 1}.get(states[path], 0)
        assert (plan.found, plan.ignored.total()) == (len(states), len(ignored_names))
        assert plan.done == sum(s == "done" for s in states.values())
        assert plan.rejects_waiting == (0 if retry else sum(s == "rejected" for s in states.values()))
        assert plan.parts == {*list_parts(output, "results"), *list_parts(output, "rejects")}


def test_plan_limit_takes_the_same_random_images(tmp_path: Path) -> None:
    """A larger limit adds images to the sample, and the next run goes on with other images."""
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    for number in range(200):
        source.write(f"{number:03}.jpg", b"1")
    samples = [paths_of(plan_input(source, output, SHA, PARAMS, limit=limit)) for limit in (20, 20, 50, 200, 999)]
    assert [len(sample) for sample in samples] == [20, 20, 50, 200, 200]
    assert samples[0] == samples[1]
    assert set(samples[0]) < set(samples[2])
    assert all(sample == sorted(sample) for sample in samples)
    # The sample is spread over the names: each quarter of the input has some of its images.
    assert len({int(name[:3]) // 50 for name in samples[0]}) == 4
    assert paths_of(plan_input(source, output, SHA, PARAMS, limit=3, limit_order="first")) == [
        "000.jpg",
        "001.jpg",
        "002.jpg",
    ]
    put(output, "results", [key(path, etags(source)[path]) for path in samples[0]])
    assert set(paths_of(plan_input(source, output, SHA, PARAMS, limit=30))) == set(samples[2]) - set(samples[0])


def test_plan_is_empty_when_all_is_committed(places: tuple[Store, Store]) -> None:
    source, output = places
    commit(source, output)
    plan = plan_input(source, output, SHA, PARAMS)
    assert (paths_of(plan), plan.done, plan.bytes_todo) == ([], 3, 0)


def test_plan_repeats_a_file_of_another_size(places: tuple[Store, Store]) -> None:
    source, output = places
    commit(source, output)
    source.write("x/b.png", b"something longer")
    plan = plan_input(source, output, SHA, PARAMS)
    assert (paths_of(plan), plan.done, plan.bytes_todo) == (["x/b.png"], 2, 16)


def test_plan_repeats_a_touched_file_and_reject(places: tuple[Store, Store]) -> None:
    source, output = places
    put(output, "results", [key("a.jpg", etags(source)["a.jpg"])])
    put(output, "rejects", [key("c.gif", etags(source)["c.gif"]) | {"transient": False, "attempts": 1}])
    assert paths_of(plan_input(source, output, SHA, PARAMS)) == ["x/b.png"]
    for path in ("a.jpg", "c.gif"):
        os.utime(source.full(path), ns=(1, 1))
    assert sorted(paths_of(plan_input(source, output, SHA, PARAMS))) == ["a.jpg", "c.gif", "x/b.png"]


@pytest.mark.parametrize(
    ("sha", "params"), [("d" * 64, PARAMS), (SHA, {"step": 16.0}), (SHA, PARAMS | {"reconstruct": True})]
)
def test_plan_repeats_all_for_a_new_model_or_parameter(
    places: tuple[Store, Store], sha: str, params: dict[str, Any]
) -> None:
    source, output = places
    commit(source, output)
    assert len(plan_input(source, output, sha, params).todo) == 3
    assert len(plan_input(source, output, SHA, PARAMS).todo) == 0


def test_plan_prefers_a_row_to_an_earlier_reject(places: tuple[Store, Store]) -> None:
    source, output = places
    commit(source, output, transient=False, attempts=1)
    commit(source, output)
    for retry in (False, True):
        plan = plan_input(source, output, SHA, PARAMS, retry_failed=retry)
        assert (len(plan.todo), plan.done, plan.rejects_waiting) == (0, 3, 0)


def test_plan_decides_retries_by_the_last_reject(places: tuple[Store, Store]) -> None:
    source, output = places
    for fence, transient, todo in ((1, False, 0), (2, True, 3), (3, False, 0)):
        commit(source, output, fence=fence, transient=transient, attempts=fence)
        plan = plan_input(source, output, SHA, PARAMS)
        assert (len(plan.todo), plan.rejects_waiting) == (todo, 3 - todo)
        assert plan.todo["attempts"].to_pylist() == [fence] * todo


def test_plan_retries_only_rejects_of_a_class(places: tuple[Store, Store], caplog: pytest.LogCaptureFixture) -> None:
    """Only the class of an image's newest reject counts."""
    source, output = places
    final = {"transient": False, "attempts": 1}
    rejects = [("a.jpg", 1, "OldClass"), ("a.jpg", 2, "TooManyPixels"), ("c.gif", 1, "TooManyPixels"), ("c.gif", 2, "Other")]
    tags = etags(source)
    for path, fence, error_class in rejects:
        put(output, "rejects", [key(path, tags[path]) | final | {"fence": fence, "error_class": error_class}])
    for retry_failed, todo in (("TooManyPixels", ["a.jpg"]), ("Other", ["c.gif"]), (True, ["a.jpg", "c.gif"])):
        assert paths_of(plan_input(source, output, SHA, PARAMS, retry_failed=retry_failed)) == todo
    assert not caplog.messages
    assert paths_of(plan_input(source, output, SHA, PARAMS, retry_failed="OldClass")) == []
    assert caplog.messages[0].startswith("retry_failed=OldClass: no image of the input has a newest reject of this class")


def test_plan_ignores_incomplete_parts(places: tuple[Store, Store]) -> None:
    source, output = places
    commit(source, output)
    for path in ("results/.0123.tmp", "results/.hidden.parquet", "results/notes.txt", "results/.trash/part-1.parquet"):
        output.write(path, b"not parquet")
    assert plan_input(source, output, SHA, PARAMS).done == 3


def test_plan_names_a_part_that_is_no_file(places: tuple[Store, Store]) -> None:
    source, output = places
    commit(source, output)
    special_file = Path(output.full("results/odd.parquet"))
    for make, description in (
        (lambda: special_file.symlink_to("/nowhere"), "a broken link"),
        (lambda: os.mkfifo(special_file), "a pipe"),
    ):
        make()
        with pytest.raises(StorageError, match=rf"odd\.parquet: .*{description}.*Repair it, or move it out of OUTPUT"):
            plan_input(source, output, SHA, PARAMS)
        special_file.unlink()


def test_plan_of_an_empty_input_is_empty(tmp_path: Path) -> None:
    plan = plan_input(Store(str(tmp_path / "in")), Store(str(tmp_path / "out")), SHA, PARAMS)
    assert (len(plan.todo), plan.found, plan.ignored, plan.done, plan.parts) == (0, 0, {}, 0, set())
    assert plan.todo.schema == REFERENCE


def test_plan_marks_a_name_without_utf8_as_problem(places: tuple[Store, Store]) -> None:
    source, output = places
    Path(os.fsdecode(os.fsencode(source.root) + b"/bad\xff.jpg")).write_bytes(b"1")
    references = plan_input(source, output, SHA, PARAMS).todo.to_pylist()
    assert {r["rel_path"]: bool(r["problem"]) for r in references} == {
        "a.jpg": False, "x/b.png": False, "c.gif": False, "bad\\xff.jpg": True,
    }  # fmt: skip


def test_plan_of_a_bucket_uses_etags(moto_bucket: str, tmp_path: Path) -> None:
    source, output = Store(f"{moto_bucket}/in"), Store(str(tmp_path))
    for path in ("_a.jpg", "x/ü#1.png", "z.txt"):
        source.write(path, path.encode())
    commit(source, output)
    assert plan_input(source, output, SHA, PARAMS).done == 2
    source.write("_a.jpg", b"_b.jpg")
    assert paths_of(plan_input(source, output, SHA, PARAMS)) == ["_a.jpg"]


@given(st.integers(0, 40), st.integers(1, 50))
def test_blocks_hold_every_reference_once_in_order(count: int, rows: int) -> None:
    todo = pa.Table.from_pylist([{"rel_path": str(n)} for n in range(count)], REFERENCE)
    blocks = split_blocks(todo, rows)
    assert [p for block in blocks for p in block["rel_path"].to_pylist()] == [str(n) for n in range(count)]
    assert all(0 < len(block) <= rows for block in blocks)


def test_read_parts_adds_the_file_of_each_row(places: tuple[Store, Store]) -> None:
    source, output = places
    for path in ("a.jpg", "c.gif"):
        put(output, "results", [key(path, etags(source)[path])])
    table = read_parts(output, list_parts(output, "results"), ["rel_path"])
    assert sorted(table["rel_path"].to_pylist()) == ["a.jpg", "c.gif"]
    assert sorted(table["part"].to_pylist()) == list_parts(output, "results")
    assert read_parts(output, [], ["rel_path"]).schema.names == ["rel_path", "part"]
