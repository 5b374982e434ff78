"""Unusual names, captions and rows: each costs at most one image, never the run."""

import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.plan import build_references
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.parquet import BATCH_ROWS
from imagemill.pipeline.sources.source import SourceConfig
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.shards import add, damage, images, listed, pictures, rows, shard


def test_tar_members_with_invalid_utf8_names_are_escaped(tmp_path, crops):
    source, output = tmp_path / "in", tmp_path / "out"
    data = pictures(crops, 3)
    source.mkdir()
    with tarfile.open(source / "a.tar", "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as tar:
        add(tar, "café.png", data[0])
        add(tar, "half.png", data[1])
        add(tar, "half.json", b'{"caption": "half an emoji: \\ud83d"}')
    os.rename(source / "a.tar", os.fsencode(source) + b"/caf\xe9.tar")
    shard(source / "b.tar", {"whole.png": data[2]})
    record = run(RunConfig(task="denoise", input=str(source), output=str(output), max_reject_fraction=1))
    assert (record["ok"], record["reasons"]) == (1, {"BadName": 1})
    os.rename(os.fsencode(source) + b"/caf\xe9.tar", source / "a.tar")
    assert run(RunConfig(task="denoise", input=str(source), output=str(output)))["ok"] == 2
    output_rows = rows(output)
    assert set(output_rows) == {"a.tar/caf\\xe9.png", "a.tar/half.png", "b.tar/whole.png"}
    assert "half an emoji: \\\\ud83d" in repr(output_rows["a.tar/half.png"]["extra"])
    assert verify(Store(str(output))).problems == []


def test_source_names_and_reasons_hold_no_secret(tmp_path):
    signed_url = "https://h/y.jpg?X-Amz-Signature=hidden"
    lines = ["url,key", "https://user:hidden@h/x.jpg,", "HTTPS://user:hidden@h/z.jpg,", f"{signed_url},k", f"{signed_url},k"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    for key in (None, "key"):
        source = open_input(str(tmp_path / "list.csv"), StorageConfig(), SourceConfig(http="public", key=key))
        references = build_references(list_images(source), source.store, "", {})[0].to_pylist()
        problems = [str(row["problem"]) for row in references]
        assert [p.partition(":")[0] for p in problems] == ["NotAllowed", "NotAllowed", "None", "DuplicateName"]
        assert [row["rel_path"] for row in references[:2]] == ["h/x.jpg", "h/z.jpg"]
        assert "hidden" not in "".join([*problems, references[0]["source_uri"]])
    assert [row["rel_path"] for row in references[2:]] == ["k", "k#https://h/y.jpg?X-Amz-Signature=…@1"]


def test_invalid_utf8_is_a_bad_shard_or_manifest(tmp_path, crops):
    invalid_utf8 = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"image": pictures(crops, 1), "key": invalid_utf8}), tmp_path / "shard.parquet")
    [(_, problem)] = images(tmp_path / "shard.parquet").items()
    assert str(problem.problem).startswith("BadShard")
    pq.write_table(pa.table({"uri": invalid_utf8}), tmp_path / "list.parquet")
    with pytest.raises(ConfigError, match="cannot be read"):
        listed(tmp_path / "list.parquet")


def test_damaged_pages_reject_only_later_rows(tmp_path):
    table = pa.table({"image": [bytes([n]) * 500 for n in range(3 * BATCH_ROWS)]})
    pq.write_table(table, tmp_path / "shard.parquet", row_group_size=BATCH_ROWS, use_dictionary=False)
    damage(tmp_path / "shard.parquet", 2)
    output_rows = [str(image.problem).partition(":")[0] for image in images(tmp_path).values()]
    assert output_rows == ["None"] * 2 * BATCH_ROWS + ["BadShard"]
    pq.write_table(pa.table({"uri": ["a.png"] * 9}), tmp_path / "list.parquet")
    damage(tmp_path / "list.parquet", 0)
    with pytest.raises(ConfigError, match="cannot be read"):
        listed(tmp_path / "list.parquet")


def test_shard_without_rows_is_an_empty_input(tmp_path):
    pq.write_table(pa.table({"jpg": pa.array([], pa.binary())}), tmp_path / "empty.parquet")
    config = RunConfig(task="denoise", input=str(tmp_path / "empty.parquet"), output=str(tmp_path / "out"))
    assert build_plan(resolve(config)).found == 0


def test_duplicate_names_are_stable_across_listings(tmp_path, crops):
    (tmp_path / "a.png").write_bytes(pictures(crops, 1)[0])
    (tmp_path / "b.png").write_bytes(pictures(crops, 2)[1])
    config = RunConfig(task="denoise", input=str(tmp_path / "list.csv"), output=str(tmp_path / "out"))

    def identities(lines: list[str]) -> set[str]:
        (tmp_path / "list.csv").write_text("\n".join(["path", *lines]))
        return set(build_plan(resolve(config)).todo["image_id"].to_pylist())

    first_identities = identities(["a.png", "a.png", "a.png"])
    assert len(first_identities) == 3
    assert len(identities(["b.png", "a.png", "a.png", "a.png"]) - first_identities) == 1


def test_output_names_of_images_and_other_files_differ(tmp_path, crops):
    first, second = pictures(crops, 2)
    shard(tmp_path / "in/a.tar", {"123": first, "x/123.png": second, "x/123": first})
    run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "out")))
    assert {name: row["output_uri"] for name, row in rows(tmp_path / "out").items()} == {
        "a.tar/123": "images/a.tar/123.image.png",
        "a.tar/x/123": "images/a.tar/x/123.image.png",
        "a.tar/x/123.png": "images/a.tar/x/123.png",
    }
    assert verify(Store(str(tmp_path / "out"))).problems == []


def test_output_linked_into_the_input_is_refused(tmp_path):
    (tmp_path / "photos").mkdir()
    Path(tmp_path / "link").symlink_to(tmp_path / "photos")
    with pytest.raises(ConfigError, match="overlap: one contains the other"):
        resolve(RunConfig(task="denoise", input=str(tmp_path / "photos"), output=str(tmp_path / "link/out")))
