"""Manifests: the files that rows name, names of manifests, and files that are forbidden."""

import json
import os
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.output.rejects import read_waiting_rejects
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.plan import build_references
from imagemill.pipeline.run import run
from imagemill.pipeline.sources.image_reader import ImageReader
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.source import ListedImage, SourceConfig
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.shards import images, listed, pictures, rows


def test_manifest_names_only_images_of_its_folder(tmp_path, rclone_bucket, crops):
    photos = pictures(crops, 3)
    bucket = Store(rclone_bucket)
    bucket.write("far/0.png", photos[0])
    folder, other_folder = tmp_path / "m", tmp_path / "other"
    for path, data in ((folder / "near/1.png", photos[1]), (other_folder / "2.png", photos[2])):
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    (folder / "out.png").symlink_to("/etc/hostname")
    lines = [
        f"{rclone_bucket}/far/0.png", "near/1.png", str(other_folder / "2.png"), "../other/2.png", "file:///etc/hostname",
        "out.png", "gone.png", "http://169.254.169.254/latest/meta-data", "ftp://x/y.png", "",
    ]  # fmt: skip
    (folder / "list.jsonl").write_text("".join(json.dumps({"uri": line, "who": n}) + "\n" for n, line in enumerate(lines)))
    listed_images = listed(folder / "list.jsonl", carry=["who"])
    problems = {n: (image.problem or "").partition(":")[0] for n, image in enumerate(listed_images) if image}
    not_allowed = "NotAllowed"
    assert problems == {
        0: "", 1: "", 2: not_allowed, 3: not_allowed, 4: not_allowed, 5: not_allowed, 6: "FileNotFound", 7: not_allowed,
        8: not_allowed, 9: "BadName",
    }  # fmt: skip
    config = RunConfig(
        task="denoise",
        input=str(folder / "list.jsonl"),
        output=str(tmp_path / "done"),
        max_reject_fraction=1,
        source=SourceConfig(roots=[str(other_folder)], carry=["who"]),
    )
    record = run(config)
    assert (record["ok"], record["rejected"]) == (4, 6)
    assert sorted(json.loads(row["extra"])["who"] for row in rows(tmp_path / "done").values()) == [0, 1, 2, 3]
    assert verify(Store(str(tmp_path / "done"))).problems == []


def test_manifest_reads_files_below_allowed_roots(tmp_path, crops):
    (tmp_path / "m").mkdir()
    (tmp_path / "a.png").write_bytes(pictures(crops, 1)[0])
    (tmp_path / "m/list.csv").write_text(f"path\n{tmp_path}/a.png\n")
    source = open_input(str(tmp_path / "m/list.csv"), StorageConfig(), SourceConfig(roots=["/"]))
    todo, _ = build_references((image for image in list_images(source)), source.store, "", {})
    [row] = todo.to_pylist()
    assert (row["problem"], row["source_uri"]) == (None, f"{tmp_path}/a.png")
    assert ImageReader(source, 1).image(row) == pictures(crops, 1)[0]


def test_failing_store_does_not_turn_a_manifest_into_folder(rclone_bucket, monkeypatch):
    Store(rclone_bucket).write("list.csv", b"path\na.png\n")
    s3fs.S3FileSystem.clear_instance_cache()
    requests, info = [], s3fs.S3FileSystem._info

    async def once(*args: Any, **options: Any) -> Any:
        requests.append(args)
        if len(requests) > 1:
            raise PermissionError("no more")
        return await info(*args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_info", once)
    with pytest.raises(PermissionError):
        open_input(f"{rclone_bucket}/list.csv", StorageConfig(), SourceConfig())


def test_manifest_lists_each_impossible_path_as_a_reject(tmp_path, rclone_bucket, crops):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.png").write_bytes(pictures(crops, 1)[0])
    Store(f"{rclone_bucket}/deep").write("er/a.png", pictures(crops, 1)[0])
    lines = ["a.png", "folder", "nul\0.png", rclone_bucket, f"{rclone_bucket}/deep", f"{rclone_bucket}/deep/er/a.png"]
    pq.write_table(pa.table({"uri": lines, "key": ["k", None, "n", None, None, None]}), tmp_path / "list.parquet")
    listed_images = [
        image for image in listed(tmp_path / "list.parquet", key="key", uri="uri") if isinstance(image, ListedImage)
    ]
    assert [(image.problem or "").partition(": ")[0] for image in listed_images] == ["", *["NotReadable"] * 4, ""]
    assert "a folder, not a file" in str(listed_images[1].problem)
    assert listed_images[0].rel_path == "k"
    assert len({image.rel_path for image in listed_images}) == len(listed_images)


@pytest.mark.parametrize(
    ("name", "lines", "extra_line", "keys"),
    [
        ("list.csv", ["id,path", "00012,a.png", "1.10,b.png"], "x1,c.png", ["00012", "1.10"]),
        ("list.jsonl", ['{"id": "2026-01-01", "path": "a.png"}'], '{"id": "x1", "path": "c.png"}', ["2026-01-01"]),
    ],
)
def test_manifest_keys_stay_text(tmp_path, name, lines, extra_line, keys):
    for added_lines, expected in (([], keys), ([extra_line], [*keys, "x1"])):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in [*lines, *added_lines]))
        assert list(images(tmp_path / name, key="id")) == expected


def test_manifest_row_replaces_its_reject(tmp_path, rclone_bucket, crops):
    remote_store, photo = Store(f"{rclone_bucket}/far"), pictures(crops, 1)[0]
    names = ["./a.png", f"file://{tmp_path}/b.png", remote_store.uri("k.png")]
    (tmp_path / "list.csv").write_text("\n".join(["path", *names, ""]))
    output = Store(str(tmp_path / "out"))
    config = RunConfig(task="denoise", input=str(tmp_path / "list.csv"), output=output.url, max_reject_fraction=1)
    assert run(config)["reasons"] == {"FileNotFound": 3}
    for store, name in ((Store(str(tmp_path)), "a.png"), (Store(str(tmp_path)), "b.png"), (remote_store, "k.png")):
        store.write(name, photo)
    assert run(config)["ok"] == 3
    assert read_waiting_rejects(output, ["rel_path"])["rel_path"].to_pylist() == []


def test_manifest_does_not_open_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "list.csv").write_text("path\npipe.png\n")
    [image] = images(tmp_path / "list.csv").values()
    assert re.match(r"NotReadable: .*a pipe, socket or device, not a file", str(image.problem))
