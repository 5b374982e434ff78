"""Test `imagemill prune`: what goes, what stays, and what a kill leaves."""

import io
import logging
import shutil
import tarfile
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagemill.jobs.prune import match_request, select_rows, show_prune
from imagemill.jobs.removed import list_sources
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, OutputHeld, StorageError
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output import compact
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.parts import SUPERSEDED, list_parts, read_parts
from imagemill.pipeline.output.prune import prune
from imagemill.pipeline.output.prune_selection import Selection, select_images, select_old_versions
from imagemill.pipeline.output.run_history import PRUNED, list_run_ids
from imagemill.pipeline.output.snapshot import read_snapshot
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.run import run
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.sources.source import SourceConfig
from imagemill.pipeline.storage import Store
from tests.support.folders import files_below
from tests.support.image_files import encode_as
from tests.support.outputs import compressed
from tests.support.shards import shard

PATHS = ["anna/0.png", "anna/1.png", "anna/broken.png", "ben/0.png", "ben/1.png"]


def write_images(folder: Path, crops: list[np.ndarray]) -> None:
    for number, path in enumerate(PATHS):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if "broken" in path:
            (folder / path).write_bytes(b"broken")
        else:
            Image.fromarray(crops[number]).save(folder / path)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Path:
    """Return a folder with an input and an output, in which each image has rows of two versions."""
    folder = tmp_path_factory.mktemp("template")
    write_images(folder / "work/in", crops)
    for sigma in (15, 50):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("imagemill.pipeline.engines.selection.is_connected_to_ray", lambda: False)
            run(config_of(folder / "work", params={"sigma": sigma}))
    (folder / "work").rename(folder / "original")
    return folder


@pytest.fixture
def place(template: Path) -> Path:
    """Return a copy of the template in the folder where the runs were made."""
    return fresh_copy(template)


def fresh_copy(template: Path) -> Path:
    shutil.rmtree(template / "work", ignore_errors=True)
    return Path(shutil.copytree(template / "original", template / "work"))


def config_of(folder: Path, **options: object) -> RunConfig:
    return RunConfig(
        task="denoise", input=f"{folder}/in", output=f"{folder}/out", rows_per_part=2, max_reject_fraction=1, engine="local",
        **options,
    )  # fmt: skip


def paths_of(output: Store) -> list[str]:
    """Return the rel_path of each row and reject."""
    return sorted(
        path
        for folder in ("results", "rejects")
        for path in read_parts(output, list_parts(output, folder), ["rel_path"])["rel_path"].to_pylist()
    )


def removed_table(output: Store) -> dict[str, list[object]]:
    [path] = Path(output.root, PRUNED).glob("*/removed.parquet")
    return dict(pq.read_table(path).to_pydict())


def test_prune_removes_images_that_left_the_input(place, imagemill):
    output = Store(f"{place}/out")
    shutil.rmtree(place / "in/anna")
    (place / "out/images/anna/0.png").write_bytes(b"edited by the user")
    (place / "out/images/anna/notes.txt").write_text("of the user")
    before = files_below(place)
    code, out, _ = imagemill("prune", output.url)
    assert (code, out.splitlines()[1:]) == (
        0, ["  anna/0.png", "  anna/1.png", "  anna/broken.png", "nothing was removed. Add --yes to remove"],
    )  # fmt: skip
    assert out.startswith("3 images that no input holds any more: 4 rows and 2 rejects, about ")
    assert files_below(place) == before
    code, out, err = imagemill("prune", output.url, "--yes")
    assert (code, out.splitlines()[-1]) == (0, "removed: 4 rows, 2 rejects, 1 file, 2 reports")
    assert "1 file changed since a run wrote them, and stay" in err
    assert paths_of(output) == ["ben/0.png", "ben/0.png", "ben/1.png", "ben/1.png"]
    assert sorted(path.name for path in (place / "out/images/anna").iterdir()) == ["0.png", "notes.txt"]
    assert verify(output).problems == []
    removed = removed_table(output)
    assert sorted(removed["image_id"]) == sorted(map(image_id, PATHS[:3]))
    assert (sum(removed["rows"]), sum(removed["rejects"])) == (4, 2)
    assert (
        imagemill("prune", output.url, "--yes")[1] == "nothing to remove: there are no images that no input holds any more\n"
    )
    record = run(config_of(place, params={"sigma": 50}))
    assert (record["planned"], record["done_before"]) == (0, 2)
    assert verify(output).problems == []


def test_prune_of_a_request_leaves_no_name(place, imagemill, caplog):
    """The record of a deletion request holds digests. A source that still exists is processed again."""
    output = Store(f"{place}/out")
    shutil.rmtree(place / "in/ben")
    run(config_of(place, params={"sigma": 50}))
    (place / "in/ben").mkdir()
    with caplog.at_level(logging.WARNING):
        show_prune(output, [image_id("anna/0.png")], ["anna/[1b]*"], yes=True)
    assert "3 images: still in an input" in caplog.text
    assert "Exports, maps" in caplog.text
    assert set(paths_of(output)) == {"ben/0.png", "ben/1.png"}
    assert not (place / "out/images/anna").exists()
    texts = {path: path.read_bytes() for path in (place / "out").rglob("*") if path.is_file()}
    tables = {path: str(pq.read_table(path).to_pydict()).encode() for path in texts if path.suffix == ".parquet"}
    removed_ids = [image_id(path) for path in PATHS[:3]]
    for word in ("anna", *removed_ids):
        assert [path for path, text in (texts | tables).items() if word.encode() in text] == []
    assert set(removed_table(output)) == {"digest", "rows", "rejects"}
    assert run(config_of(place, params={"sigma": 50}))["planned"] == 3
    assert verify(output).problems == []


def test_prune_of_a_request_needs_no_rows(place, imagemill, monkeypatch):
    """The rows may have left before: ids in lists, and names in reports, are removed all the same."""
    output = Store(f"{place}/out")
    show_prune(output, old_versions=True, yes=True)
    shutil.rmtree(place / "in/anna")
    show_prune(output, yes=True)
    gone = [image_id(path) for path in PATHS[:3]]

    def traces() -> set[str]:
        tables = [str(pq.read_table(path).to_pydict()) for path in (place / "out/runs").rglob("*.parquet")]
        return {trace for trace in gone if any(trace in table for table in tables)}

    [report] = (place / "out/runs").glob("*/report.html")
    assert (traces(), "anna/0.png" in report.read_text()) == (set(gone), True)
    arguments = ["--path", "anna/0.png", "--id", gone[1]]
    code, out, _ = imagemill("prune", output.url, *arguments)
    assert (code, out.splitlines()[-1], report.exists()) == (0, "nothing was removed. Add --yes to remove", True)
    code, out, err = imagemill("prune", output.url, *arguments, "--yes")
    assert (code, out.splitlines()[-1]) == (0, "removed: 0 rows, 0 rejects, 0 files, 1 report")
    assert "Exports, maps" in err
    assert "a pattern" not in err
    assert traces() == {gone[2]}
    monkeypatch.setattr("imagemill.jobs.prune.list_sources", None)  # Nothing matches, so no input is listed.
    assert "a pattern finds only images with rows" in imagemill("prune", output.url, "--path", "anna/*", "--yes")[2]
    assert verify(output).problems == []


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("a.jpg", ["a.jpg"]),
        ("/a.jpg", ["a.jpg"]),
        ("x[1].jpg", ["x1.jpg", "x[1].jpg"]),
        ("y[.jpg", ["y[.jpg"]),
        ("drafts", []),
        ("drafts/", ["b/drafts/c.jpg", "drafts/a.jpg"]),
        ("/Drafts/", ["drafts/a.jpg"]),
        ("b/*.jpg", ["b/a.jpg"]),
        ("s.tar/", ["s.tar/a.jpg"]),
    ],
)
def test_path_of_a_request_is_exact_or_a_pattern(path, names):
    """Patterns are those of --include. A plain path is one image, not all images of that name."""
    table = pa.table(
        {"rel_path": ["a.jpg", "b/a.jpg", "b/drafts/c.jpg", "drafts/a.jpg", "s.tar/a.jpg", "x1.jpg", "x[1].jpg", "y[.jpg"]}
    )
    table = table.append_column("image_id", table["rel_path"])
    assert table.filter(match_request((), [path])(table))["rel_path"].to_pylist() == names


def test_prune_keeps_the_newest_version(place):
    output = Store(f"{place}/out")
    pictures = {path: path.read_bytes() for path in (place / "out/images").rglob("*.png")}
    show_prune(output, old_versions=True, yes=True)
    assert paths_of(output) == PATHS
    assert {path: path.read_bytes() for path in (place / "out/images").rglob("*.png")} == pictures
    assert verify(output).problems == []
    record = run(config_of(place, params={"sigma": 50}))
    assert (record["planned"], record["done_before"], record["rejects_waiting"]) == (0, 4, 1)


def test_prune_deletes_files_of_interrupted_runs(place):
    """A run that was cut off may have replaced the picture, so the digest in the row no longer fits."""
    output = Store(f"{place}/out")
    marks = {"image_id": [image_id("anna/0.png")], "fence": [99]}
    output.write(f"runs/20260101T000000Z-000000/{SUPERSEDED}", parquet_bytes(pa.table(marks), 1))
    (place / "out/images/anna/0.png").write_bytes(b"new picture of anna")
    show_prune(output, paths=["anna/0.png"], yes=True)
    assert not (place / "out/images/anna/0.png").exists()


def test_prune_refuses_what_it_cannot_know(place, crops, capsys):
    output = Store(f"{place}/out")
    before = paths_of(output)
    for path in (place / "in").rglob("*.png"):
        path.unlink()
    with pytest.raises(StorageError, match=r"holds no image\. So images that still exist would count as gone"):
        show_prune(output, yes=True)
    shutil.rmtree(place / "in")
    with pytest.raises(StorageError, match="does not exist"):
        show_prune(output, yes=True)
    with pytest.raises(ConfigError, match="must have 32 hexadecimal digits"):
        show_prune(output, ["12"], yes=True)
    with pytest.raises(ConfigError, match="cannot be combined"):
        show_prune(output, paths=["a"], old_versions=True)
    assert paths_of(output) == before
    assert verify(output).problems == []
    # A run confirmed that the input moved, so the old place is not missed.
    write_images(place / "moved", crops)
    shutil.rmtree(place / "moved/anna")
    moved = config_of(place, params={"sigma": 50}, allow_new_input=True).model_copy(update={"input": f"{place}/moved"})
    run(moved)
    show_prune(output)
    assert "3 images that no input holds any more" in capsys.readouterr().out
    with Lease(output), pytest.raises(OutputHeld):
        show_prune(output, paths=["anna/*"], yes=True)
    assert len(set(paths_of(output))) == 5


def test_prune_counts_every_reading_of_an_input(tmp_path, crops):
    """Two runs name the same images in two ways. Both names are in the input."""
    write_images(tmp_path / "in", crops)
    (tmp_path / "in/list.csv").write_text("path,id\nben/0.png,x\n")
    config = config_of(tmp_path, prefix="north").model_copy(update={"input": f"{tmp_path}/in/list.csv"})
    for key in ("id", None):
        run(config.model_copy(update={"source": SourceConfig(key=key)}))
    output = Store(config.output)
    assert (len(paths_of(output)), len(select_rows(output, "gone", (), ()).rows)) == (2, 0)


def test_prune_keeps_members_of_unread_shards(tmp_path, crops):
    photos = [encode_rgb(crop, "PNG") for crop in crops[:2]]
    shard(tmp_path / "in/s.tar", {"0.png": photos[0], "1.png": photos[1]})
    pq.write_table(pa.table({"image": photos}), tmp_path / "in/t.parquet")
    run(config_of(tmp_path))
    output, whole = Store(f"{tmp_path}/out"), (tmp_path / "in/s.tar").read_bytes()

    def refuse(problem: str) -> None:
        with pytest.raises(StorageError, match=rf"{problem}.*would count as gone"):
            select_rows(output, "gone", (), ())

    (tmp_path / "in/s.tar").write_bytes(whole[:1100])
    refuse("s.tar: CutShard: ")
    (tmp_path / "in/s.tar").write_bytes(b"PK" + whole)
    refuse("s.tar: BadShard: ")
    (tmp_path / "in/s.tar").unlink()
    (tmp_path / "in/s.tar").symlink_to(tmp_path / "disk/s.tar")
    refuse("s.tar: UnreadableShard: a broken link")
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/s.tar").write_bytes(whole)
    assert len(select_rows(output, "gone", (), ()).rows) == 0
    pq.write_table(pa.table({"left": photos, "right": photos}), tmp_path / "in/t.parquet")
    refuse("t.parquet: UnreadColumn: ")


def test_prune_knows_that_an_input_moved_back(place):
    """The former place of a moved input may be missing, unless a later run found the images there again."""
    source, other, output = place / "in", place / "other", Store(f"{place}/out")
    config = config_of(place, params={"sigma": 50}, allow_new_input=True)
    source.rename(other)
    assert run(config.model_copy(update={"input": str(other)}))["planned"] == 0
    assert list_sources(output).problems == []
    other.rename(source)
    run(config)
    assert (list_sources(output).problems, list_sources(output).empty_inputs) == ([], [])
    source.rename(place / "not mounted")
    assert list_sources(output).problems == [f"input {source}: does not exist. Check the path"]


def test_prune_tells_moves_of_prefixes_apart(tmp_path, crops):
    """The former place of one prefix is the present place of another."""
    north, south, output = tmp_path / "north", tmp_path / "south", Store(f"{tmp_path}/out")
    for folder, crop in ((north, crops[0]), (south, crops[1])):
        folder.mkdir()
        Image.fromarray(crop).save(folder / "0.png")
    config = config_of(tmp_path, allow_new_input=True)
    run(config.model_copy(update={"input": str(north), "prefix": "north"}))
    north.rename(tmp_path / "moved")
    run(config.model_copy(update={"input": f"{tmp_path}/moved", "prefix": "north"}))
    south.rename(north)
    run(config.model_copy(update={"input": str(north), "prefix": "south"}))
    assert list_sources(output).problems == []
    north.rename(tmp_path / "not mounted")
    assert list_sources(output).problems == [f"input {north}: does not exist. Check the path"]


def test_prune_leaves_a_folder_of_the_user_alone(tmp_path):
    """A lease would make the folder an output, into which a run may write."""
    output = Store(f"{tmp_path}/user")
    output.write("results/notes.txt", b"of the user")
    for kind in ({"paths": ["*"]}, {"old_versions": True}, {}):
        with pytest.raises(ConfigError, match="no run wrote into it"):
            show_prune(output, **kind, yes=True)
    assert files_below(tmp_path).keys() == {"user/results/notes.txt"}


def test_prune_keeps_rejects_of_repeated_names(tmp_path, crops, capsys):
    """The second member of a name is a reject under another name, and stays in the input."""
    (tmp_path / "in").mkdir()
    picture = encode_as(crops[0], "PNG")
    with tarfile.open(tmp_path / "in/shard.tar", "w") as archive:
        for _ in range(2):
            member = tarfile.TarInfo("a.png")
            member.size = len(picture)
            archive.addfile(member, io.BytesIO(picture))
    assert run(config_of(tmp_path))["reasons"] == {"DuplicateName": 1}
    show_prune(Store(f"{tmp_path}/out"))
    assert "nothing to remove" in capsys.readouterr().out


def test_prune_needs_the_config_of_each_run(place, capsys):
    """Images of a run that left no config may be in an input that nobody remembers."""
    output = Store(f"{place}/out")
    run_id = list_run_ids(output)[0]
    shutil.rmtree(place / "out/runs" / run_id)
    show_prune(output)
    assert "nothing to remove" in capsys.readouterr().out
    shutil.rmtree(place / "in/anna")
    problem = rf"runs/{run_id}/config.yaml: missing, .* would count as gone\. To remove .* --path"
    with pytest.raises(StorageError, match=problem):
        show_prune(output, yes=True)
    assert paths_of(output) == sorted(PATHS * 2)
    show_prune(output, paths=["anna/*"], yes=True)
    show_prune(output, yes=True)
    assert paths_of(output) == sorted(PATHS[3:] * 2)


class Killed(BaseException):
    pass


class InterruptedStore(Store):
    """A store that raises at its n-th change outside of the lease, like a process that is killed."""

    changes_left = 0

    def count_change(self, path: str) -> None:
        if path.startswith("runs/lease"):
            return
        if not self.changes_left:
            raise Killed
        self.changes_left -= 1

    def write(self, path: str, *args, **more) -> None:
        self.count_change(path)
        super().write(path, *args, **more)

    def delete(self, path: str) -> None:
        self.count_change(path)
        super().delete(path)


def select(output: Store, kind: str) -> Selection:
    if kind == "old versions":
        return select_old_versions(output)
    return select_images(output, lambda table: pc.starts_with(table["rel_path"], "anna"))


def select_nothing(output: Store) -> Selection:
    return select_images(output, lambda table: pa.array([False] * len(table), pa.bool_()))


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("kind", ["gone", "request", "old versions"])
def test_prune_killed_anywhere_is_finished(template, kind, step):
    """After each kill, verify finds no problem. The next prune finishes a prune that had begun to remove, or undoes it."""
    remaining = PATHS if kind == "old versions" else PATHS[3:] * 2
    for changes in range(0, 1000, step):
        folder = fresh_copy(template)
        output, interrupted = Store(f"{folder}/out"), InterruptedStore(f"{folder}/out")
        interrupted.changes_left = changes
        with suppress(Killed):
            prune(interrupted, partial(select, interrupted, kind), kind)
        assert verify(output).problems == []
        prune(output, partial(select_nothing, output), "gone")
        assert verify(output).problems == []
        # The first two changes announce the prune.
        assert paths_of(output) == sorted(PATHS * 2 if changes < 2 else remaining)
        prunes = [sorted(path.name for path in prune.iterdir()) for prune in (folder / "out" / PRUNED).glob("*/*/..")]
        assert all(names == ["pruned.json", "removed.parquet"] for names in prunes)
        if interrupted.changes_left:
            return
    pytest.fail("the prune never ended")


def test_prune_killed_anywhere_hides_latents(tmp_path, pieces, monkeypatch):
    """Parts are replaced one by one, and parts mix old and new rows. No reader gets an older row as the newest one."""
    monkeypatch.setattr(compact, "MERGED_BYTES", 1)
    images = {f"{name}.png": pieces[f"{number}.png"] for number, name in enumerate(["anna1", "anna2", "ben"])}
    for fence in (1, 2):
        original = compressed(tmp_path / "original", images, fence=fence, rows_per_part=1)
    rows = read_parts(original, list_parts(original, "results"), ["rel_path", "fence"]).to_pylist()
    part_of = {(row["rel_path"], row["fence"]): row["part"] for row in rows}
    for fence in (1, 2):
        mixed = [part_of["anna1.png", fence], part_of["anna2.png", 3 - fence]]
        assert compact.merge_parts(original, "results", mixed, 1) == 2
    everything = dict.fromkeys(images, 2)
    for changes in range(2, 100):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(tmp_path / "original/out", tmp_path / "copy")
        output, interrupted = Store(f"{tmp_path}/copy"), InterruptedStore(f"{tmp_path}/copy")
        interrupted.changes_left = changes
        with suppress(Killed):
            prune(interrupted, partial(select, interrupted, "gone"), "gone")
        tables = read_snapshot(output).tables(["rel_path", "fence"])
        newest = {row["rel_path"]: row["fence"] for table in tables for row in table.to_pylist()}
        # The third change hides the images.
        assert newest == (everything if changes < 3 else {"ben.png": 2})
        prune(output, partial(select_nothing, output), "gone")
        assert paths_of(output) == ["ben.png"] * 2
        if interrupted.changes_left:
            return
    pytest.fail("the prune never ended")


def test_run_finishes_a_killed_prune(place):
    output, interrupted = Store(f"{place}/out"), InterruptedStore(f"{place}/out")
    shutil.rmtree(place / "in/anna")
    interrupted.changes_left = 5
    with pytest.raises(Killed):
        prune(interrupted, partial(select, interrupted, "gone"), "gone")
    assert verify(output).problems == []
    assert run(config_of(place, params={"sigma": 50}))["done_before"] == 2
    assert (verify(output).problems, paths_of(output)) == ([], sorted(PATHS[3:] * 2))


def test_prune_rewrites_latents_on_s3(moto_bucket, tmp_path, crops):
    write_images(tmp_path / "in", crops)
    output = Store(f"{moto_bucket}/out")
    run(RunConfig(task="compress", input=f"{tmp_path}/in", output=output.url, max_reject_fraction=1, engine="local"))
    shutil.rmtree(tmp_path / "in/anna")
    show_prune(output, yes=True)
    assert paths_of(output) == ["ben/0.png", "ben/1.png"]
    result = verify(output)
    assert (result.problems, result.latents) == ([], 2)
