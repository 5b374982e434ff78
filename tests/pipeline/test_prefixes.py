"""`prefix` keeps the images of several inputs apart in one OUTPUT."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from imagemill.jobs.decode import decode_output
from imagemill.jobs.export import show_export
from imagemill.jobs.night_config import NightlyConfig
from imagemill.jobs.nightly import show_night
from imagemill.jobs.removed import list_sources
from imagemill.jobs.status import show_status
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.rejects import read_waiting_rejects
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.reports.report import rewrite_report
from imagemill.pipeline.resolve import resolve_task
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.shards import pictures, rows, shard


@pytest.fixture
def cameras(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    """Return the parent of two folders whose different images have the same names."""
    photos = pictures(crops, 4)
    for number, camera in enumerate(("north", "south")):
        folder = tmp_path / "cameras" / camera
        folder.mkdir(parents=True)
        (folder / "1.png").write_bytes(photos[number])
        (folder / "bad.png").write_bytes(b"no image")
        shard(folder / "s.tar", {"x/2.png": photos[number + 2]})
    return tmp_path / "cameras"


def config_of(cameras: Path, camera: str, prefix: str | None, task: str = "denoise", **options: Any) -> RunConfig:
    places = {"input": str(cameras / camera), "output": str(cameras.parent / "out")}
    return RunConfig(task=task, **places, prefix=prefix, max_reject_fraction=1, **options)


def read_waiting(output: Store) -> set[str]:
    return set(read_waiting_rejects(output, ["rel_path"])["rel_path"].to_pylist())


def test_prefixes_keep_inputs_apart(cameras, capsys):
    """A night over two cameras; then runs over one camera, which say nothing about the images of the other."""
    output = Store(str(cameras.parent / "out"))
    north, south = config_of(cameras, "north", "north"), config_of(cameras, "south", "site-2/south")
    show_night(NightlyConfig(jobs=[config.model_dump(exclude_defaults=True) for config in (north, south)]))
    names = {f"{prefix}/{name}" for prefix in ("north", "site-2/south") for name in ("1.png", "s.tar/x/2.png")}
    committed = rows(cameras.parent / "out")
    assert set(committed) == names
    assert {row["output_uri"] for row in committed.values()} == {f"images/{name}" for name in names}
    assert committed["site-2/south/s.tar/x/2.png"]["source_uri"] == f"{cameras}/south/s.tar/x/2.png"
    assert verify(output).problems == []

    for path in ("north/bad.png", "south/1.png"):
        (cameras / path).unlink()
    record = run(south)
    assert (record["prefix"], record["found"], record["done_before"], record.get("doubt")) == ("site-2/south", 2, 1, None)
    assert read_waiting(output) == {"north/bad.png", "site-2/south/bad.png"}
    run(north)
    assert read_waiting(output) == {"site-2/south/bad.png"}
    sources = list_sources(output)
    assert (len(sources.ids), sources.problems) == (4, [])
    assert run(south.model_copy(update={"retry_failed": True}))["rejected"] == 1
    capsys.readouterr()
    show_status(output, as_json=True)
    prefixes = {"north": f"{cameras}/north", "site-2/south": f"{cameras}/south"}
    assert json.loads(capsys.readouterr().out)["prefixes"] == prefixes
    show_status(output)
    assert f"site-2/south  {cameras}/south" in capsys.readouterr().out


def test_prefix_belongs_to_one_location(cameras):
    run(config_of(cameras, "north", "north"))
    (cameras / "south/1.png").rename(cameras / "south/other.png")
    (cameras / "south/s.tar").unlink()
    with pytest.raises(ConfigError, match=rf"the prefix north belongs to {cameras}/north\. Choose another prefix"):
        run(config_of(cameras, "south", "north"))
    assert set(rows(cameras.parent / "out")) == {"north/1.png", "north/s.tar/x/2.png"}
    # A run that was killed before it was refused does not move the prefix.
    refused = max(path for path in (cameras.parent / "out/runs").iterdir() if (path / "run.json").exists())
    (refused / "run.json").unlink()
    sources = list_sources(Store(str(cameras.parent / "out")))
    assert (len(sources.ids), sources.problems) == (3, [])
    assert run(config_of(cameras, "south", "north", allow_new_input=True))["ok"] == 1
    assert run(config_of(cameras, "south", "north"))["planned"] == 0
    with pytest.raises(ConfigError, match=f"the prefix north belongs to {cameras}/south"):
        run(config_of(cameras, "north", "north"))


def test_prefix_of_a_folder_of_another_input(cameras):
    """A prefix may have the name of a folder of an input without one. Images of one name are still protected."""
    run(config_of(cameras, "", None, source={"include": ["north/"]}))
    with pytest.raises(ConfigError, match=rf"2 of its 3 images have rows that were made from {cameras}/north \("):
        run(config_of(cameras, "south", "north"))
    # The same images are not processed again.
    assert run(config_of(cameras, "north", "north"))["done_before"] == 2
    (cameras / "moved").mkdir()
    (cameras / "north").rename(cameras / "moved/north")
    with pytest.raises(ConfigError, match="name this input with --prefix"):
        run(config_of(cameras, "moved", None))


def test_codes_with_a_prefix_are_decoded_and_exported(cameras):
    output = Store(str(cameras.parent / "out"))
    record = run(config_of(cameras, "north", "north", "compress"))
    pictures_shown = (cameras.parent / "out" / record["report"]).read_text().count("<img")
    decode_output(output, Store(str(cameras.parent / "decoded")), None)
    decoded = {str(path.relative_to(cameras.parent / "decoded")) for path in (cameras.parent / "decoded").rglob("*.png")}
    assert decoded == {"north/1.png", "north/s.tar/x/2.png"}
    show_export(output, Store(str(cameras.parent / "export")))
    table = pq.read_table(cameras.parent / "export/latents")
    assert set(zip(table["rel_path"].to_pylist(), table["removed"].to_pylist(), strict=True)) == {
        (n, False) for n in decoded
    }
    report = rewrite_report(output, record["run_id"])
    assert (cameras.parent / "out" / report).read_text().count("<img") == pictures_shown > 0


@pytest.mark.parametrize(
    "prefix", ["", "/north", "north/", "..", "a/../b", "a//b", ".", "_renamed", "north.jpg", "a\0b", "a" * 256]
)
def test_prefix_stays_inside_the_output(prefix):
    config = RunConfig(task="denoise", input="in", output="out", prefix=prefix)
    with pytest.raises(ConfigError, match=r"^prefix=.*: must be a name such as north, or several with /"):
        resolve_task(config)
