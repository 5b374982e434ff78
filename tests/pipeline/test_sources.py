"""Shards in plans and whole runs, and files that are not a source."""

import gzip
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.plan import build_references
from imagemill.pipeline.run import run
from imagemill.pipeline.schema import new_run_id
from imagemill.pipeline.sources.decompression import open_decompressed
from imagemill.pipeline.sources.image_reader import MAX_FILE_BYTES, RETRY_SECONDS, SHARD_TRIES, ImageReader, ReadError
from imagemill.pipeline.sources.input import find_images, list_images, open_input
from imagemill.pipeline.sources.source import ListedImage, SourceConfig
from imagemill.pipeline.sources.tar import FORMAT
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.shards import add, damage, images, listed, pictures, rows, shard


def test_tar_members_are_grouped_like_webdataset(tmp_path, crops):
    photo = pictures(crops, 1)[0]
    shard(
        tmp_path / "a.tar",
        {
            "x/0001.left.png": photo,
            "x/0001.json": b'{"caption": "a cat"}',
            "x/0001.txt": "größer".encode(),
            "v1.5/0002.JPEG": photo,
            "0003": photo,
            "readme": b"no picture",
            "0004.cls": b"7",
        },
    )
    listed_images = images(tmp_path)
    assert set(listed_images) == {"a.tar/x/0001.left.png", "a.tar/v1.5/0002.JPEG", "a.tar/0003"}
    assert json.loads(listed_images["a.tar/x/0001.left.png"].extra or "") == {"json": {"caption": "a cat"}, "txt": "größer"}
    assert listed_images["a.tar/v1.5/0002.JPEG"].extra is None
    assert sorted(kind for kind in listed(tmp_path) if isinstance(kind, str)) == ["cls", "json", "other", "txt"]
    assert json.loads(images(tmp_path / "a.tar", carry=["cls"])["a.tar/0003"].extra or "null") is None


def test_other_files_are_counted_by_kind(tmp_path, crops):
    shard(tmp_path / "in/a.tar", {"0.png": pictures(crops, 1)[0], "0.json": b"{}", "1.json": b"{}", "readme": b""})
    pq.write_table(pa.table({"n": [1]}), tmp_path / "in/numbers.parquet")
    for name in ("a.TXT", ".DS_Store", "b.png.backup-of-2020", "d.x/notes"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    source, output = open_input(str(tmp_path / "in"), StorageConfig(), SourceConfig()), Store(str(tmp_path / "out"))
    first = list(list_images(source, output, store_indexes=True))
    kinds = Counter(kind for kind in first if isinstance(kind, str))
    assert kinds == {"json": 2, "parquet": 1, "txt": 1, "other": 3, "excluded": 1}
    assert list(list_images(source, output)) == first
    for index in (tmp_path / "out/shards").iterdir():
        damage(index, 0)
    assert list(list_images(source, output)) == first


@pytest.mark.parametrize(
    "suffix", [".tar", ".tar.gz", *(pytest.param(s, marks=pytest.mark.chaos) for s in (".tar.bz2", ".tar.xz"))]
)
def test_cut_shard_lists_images_before_the_cut(tmp_path, crops, suffix):
    photos = pictures(crops, 5)
    whole_shard, source, output = tmp_path / f"whole{suffix}", tmp_path / "in", tmp_path / "out"
    shard(whole_shard, {f"{n}.png": data for n, data in enumerate(photos)}, f"w:{suffix[5:]}")
    source.mkdir()
    data = whole_shard.read_bytes()
    (source / f"s{suffix}").write_bytes(data[: len(data) * 7 // 10])
    config = RunConfig(task="denoise", input=str(source), output=str(output), max_reject_fraction=1)
    first = run(config)
    done_rows = rows(output)
    # bzip2 decodes nothing of a truncated block, and this file is a single block.
    assert (0 if suffix == ".tar.bz2" else 1) <= len(done_rows) == first["ok"] < 5
    assert first["reasons"] == {"CutShard": 1}
    assert run(config)["planned"] == 0

    shutil.copy(whole_shard, source / f"s{suffix}")
    second_record = run(config)
    assert (second_record["ok"], second_record["rejected"], second_record["done_before"]) == (
        5 - len(done_rows),
        0,
        len(done_rows),
    )
    assert set(rows(output)) == {f"s{suffix}/{n}.png" for n in range(5)}
    assert all(
        Image.open(output / row["output_uri"]).size == Image.open(io.BytesIO(photos[int(name[-5])])).size
        for name, row in rows(output).items()
    )
    assert verify(Store(str(output))).problems == []


def test_zstd_tar_seeks_and_detects_a_cut(tmp_path, crops):
    photos = pictures(crops, 6)
    shard(tmp_path / "plain.tar", {f"{n}.png": data for n, data in enumerate(photos)})
    tar_bytes = (tmp_path / "plain.tar").read_bytes()
    with pa.CompressedOutputStream(str(tmp_path / "in.tar.zst"), "zstd") as out:
        out.write(tar_bytes)
    source = open_input(str(tmp_path / "in.tar.zst"), StorageConfig(), SourceConfig())
    listed_images = [image for image in list_images(source) if isinstance(image, ListedImage)]
    assert [image.rel_path for image in listed_images] == [f"in.tar.zst/{n}.png" for n in range(6)]
    reader = FORMAT.reader(source.store, "in.tar.zst", SourceConfig())
    for n in (0, 1, 4, 2, 5):
        assert reader.read(listed_images[n].offset, listed_images[n].size) == photos[n]
    packed = (tmp_path / "in.tar.zst").read_bytes()
    (tmp_path / "cut.tar.zst").write_bytes(packed[: len(packed) * 2 // 3])
    (tmp_path / "bad.tar.zst").write_bytes(b"no zstd" * 100)
    for name, problem in (("cut", "CutShard: "), ("bad", "BadShard: it is not a tar archive")):
        assert listed(tmp_path / f"{name}.tar.zst")[-1].problem.startswith(problem)


@pytest.mark.parametrize(
    "head",
    [b"\0\0\0\x20ftypavif\0\0\0\0", b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51\0\x2f", b"\0\0\0\x24ftypheic\0\0\0\0"],
    ids=["avif", "jp2", "j2k", "heic"],
)
def test_tar_members_are_images_by_signature(tmp_path, head):
    shard(tmp_path / "a.tar", {"0001": head + bytes(40), "0002": b"\0\0\0\x20ftypqt  " + bytes(40)})
    assert set(images(tmp_path)) == {"a.tar/0001"}


def test_shard_with_a_wrong_index_is_listed_again(tmp_path, crops):
    shard(tmp_path / "in/a.tar", {f"{n}.png": data for n, data in enumerate(pictures(crops, 3))})
    config = RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "out"), max_reject_fraction=1)
    source = open_input(str(tmp_path / "in"), StorageConfig(), SourceConfig())
    list(list_images(source, Store(str(tmp_path / "out")), store_indexes=True))
    (index,) = (tmp_path / "out/shards").iterdir()
    table = pq.read_table(index)
    etags = ["0" * 32, *table["etag"].to_pylist()[1:]]
    damaged_table = table.set_column(table.schema.get_field_index("etag"), "etag", pa.array(etags))
    pq.write_table(damaged_table.replace_schema_metadata(table.schema.metadata), index)
    # A run that was killed after it had listed its input leaves this file.
    Store(str(tmp_path / "out")).write(f"runs/{new_run_id()}/config.yaml", b"task: denoise\n")
    assert run(config)["reasons"] == {"ShardChanged": 1}
    record = run(config)
    assert (record["ok"], record["rejected"], record["done_before"]) == (1, 0, 2)


def test_shard_that_grew_leaves_one_index(tmp_path, crops):
    for count in (1, 2):
        shard(tmp_path / "in/a.tar", {f"{n}.png": data for n, data in enumerate(pictures(crops, count))})
        source, output = open_input(str(tmp_path / "in"), StorageConfig(), SourceConfig()), Store(str(tmp_path / "out"))
        assert len(list(list_images(source, output, store_indexes=True))) == count
        assert len(list((tmp_path / "out/shards").iterdir())) == 1


def test_tar_without_end_mark_is_cut_off(tmp_path, crops):
    photo = pictures(crops, 1)[0]
    shard(tmp_path / "a.tar", {"0.png": photo, "1.png": photo})
    size = 2 * (512 + -(-len(photo) // 512) * 512)
    (tmp_path / "b.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:size])
    listed_images = images(tmp_path)
    assert [name for name, image in listed_images.items() if image.problem] == ["b.tar"]
    assert {"a.tar/0.png", "a.tar/1.png", "b.tar/0.png", "b.tar/1.png"} <= set(listed_images)


def add_sparse(tar: tarfile.TarFile, name: str, data: bytes, claimed_size: int) -> None:
    """Add a member in the format of `tar -S`: `data`, then a hole up to `claimed` bytes."""
    info = tarfile.TarInfo(name)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, len(data)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"%011o\0%011o\0" % (0, len(data))
    header[483:495] = tarfile.itn(claimed_size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(header)[0]
    tar.fileobj.write(header + data + bytes(-len(data) % 512))
    tar.offset = tar.fileobj.tell()


def test_tar_sparse_member_is_a_reject(tmp_path, crops):
    photo = pictures(crops, 1)[0]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add_sparse(tar, "0.png", photo, len(photo) + 1)
        add_sparse(tar, "1.png", photo, 1 << 60)
        add_sparse(tar, "1.json", photo, 1 << 60)
        add(tar, "2.png", photo)
    listed_images = images(tmp_path)
    assert [(image.problem or "").partition(":")[0] for image in listed_images.values()] == ["Sparse", "Sparse", ""]
    assert listed_images["a.tar/2.png"].size == len(photo)


def test_tar_members_stay_inside_the_output(tmp_path, crops):
    photo, other = pictures(crops, 2)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", photo)
        add(tar, "0.png", other)
        add(tar, "../../evil.png", photo)
        add(tar, "/abs.png", photo)
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    output = tmp_path / "out"
    record = run(RunConfig(task="denoise", input=str(tmp_path / "a.tar"), output=str(output)))
    assert (record["ok"], record["reasons"]) == (3, {"DuplicateName": 1, "Link": 1})
    written_names = {str(p.relative_to(output / "images")) for p in (output / "images").rglob("*.png")}
    assert "a.tar/0.png" in written_names
    assert len([name for name in written_names if name.startswith("_renamed/")]) == 2
    assert not list(tmp_path.parent.rglob("evil.png"))


def test_mask_belongs_to_the_image_with_its_stem(tmp_path, crops):
    photo = pictures(crops, 1)[0]
    with tarfile.open(tmp_path / "s.v1.tar", "w") as tar:
        for name in ("plain", "plain.mask.png", "v.2/c.png"):
            add(tar, name, photo)
        link = tarfile.TarInfo("v.2/c.mask.png")
        link.type, link.linkname = tarfile.SYMTYPE, "plain"
        tar.addfile(link)
    for name in ("pipe.png", "huge.png"):
        (tmp_path / name).write_bytes(photo)
    os.mkfifo(tmp_path / "pipe.mask.png")
    with (tmp_path / "huge.mask.png").open("wb") as huge:
        huge.truncate(MAX_FILE_BYTES + 1)
    source = open_input(str(tmp_path), StorageConfig(), SourceConfig())
    listed_images = {image.rel_path: image for image in list_images(source, masks=True) if isinstance(image, ListedImage)}
    assert {name: image.problem for name, image in listed_images.items()} == {
        "huge.png": None,
        "pipe.png": "BadName: its mask: a pipe, socket or device, not a file",
        "s.v1.tar/plain": None,
        "s.v1.tar/v.2/c.png": "Link: its mask: a link in a tar, not a file",
    }
    todo, _ = build_references(listed_images.values(), source.store, "", {})
    by_name = {row["rel_path"]: row for row in todo.to_pylist()}
    reading = ImageReader(source, 1)
    assert {name: reading.retry_seconds(row) for name, row in by_name.items() if not row["problem"]} == {
        "huge.png": 0,
        "s.v1.tar/plain": RETRY_SECONDS,
    }
    assert reading.read(by_name["s.v1.tar/plain"]) == (photo, photo)
    with pytest.raises(ReadError, match="1000 MB for a mask"):
        reading.read(by_name["huge.png"])


def test_parquet_shards_in_a_bucket_keep_columns(rclone_bucket, crops, tmp_path):
    photos = pictures(crops, 7)
    table = pa.table({"id": [f"p{n}" for n in range(7)], "image": [*photos[:6], None], "label": list(range(7))})
    nested_table = pa.table({"image": [{"bytes": photo, "path": "x.png"} for photo in photos[:3]]})
    source = Store(f"{rclone_bucket}/in")
    for name, rows_, size in (("a.parquet", table, 2), ("deep/b.parquet", nested_table, 100)):
        sink = pa.BufferOutputStream()
        pq.write_table(rows_, sink, row_group_size=size)
        source.write(name, sink.getvalue().to_pybytes())
    output = tmp_path / "out"
    config = RunConfig(task="denoise", input=source.url, output=str(output), max_reject_fraction=1)
    record = run(config)
    assert (record["ok"], record["reasons"]) == (9, {"EmptyFile": 1})
    output_rows = rows(output)
    assert {name.rpartition("/")[0] for name in output_rows} == {"a.parquet", "deep/b.parquet"}
    assert (output / output_rows["deep/b.parquet/row-000000001"]["output_uri"]).suffix == ".png"
    assert run(config)["planned"] == 0
    carried_images = images_of_store(source, "a.parquet", carry=["label"])
    assert [json.loads(image.extra or "")["label"] for image in carried_images] == list(range(7))
    with pytest.raises(ConfigError, match=r"no_such.*id, image, label"):
        images_of_store(source, "a.parquet", key="no_such")


def images_of_store(store: Store, name: str, **config: Any) -> list[ListedImage]:
    source = open_input(f"{store.url}/{name}", store.config, SourceConfig(**config))
    return [image for image in list_images(source) if isinstance(image, ListedImage)]


def test_find_images_in_folders_with_shard_suffixes(tmp_path, crops):
    source, photo = tmp_path / "in", pictures(crops, 1)[0]
    shard(source / "x.tar/deep.tar", {"0.png": photo})
    shard(source / "y.tar", {"z.tar/0.png": photo})
    (source / "data.parquet").mkdir()
    (source / "data.parquet/a.png").write_bytes(photo)
    names = {"x.tar/deep.tar/0.png", "y.tar/z.tar/0.png", "data.parquet/a.png"}
    existing_images = find_images(
        open_input(str(source), StorageConfig(), SourceConfig()), {*names, "x.tar/gone.png"}, Store(str(tmp_path / "out"))
    )
    assert sorted(image.rel_path for image in existing_images) == sorted(names)


def test_changed_packed_shard_is_reopened_a_few_times(tmp_path, crops, monkeypatch):
    photos = pictures(crops, 4)
    shard(tmp_path / "a.tar.gz", {f"{n}.png": data for n, data in enumerate(photos)}, "w:gz")
    source = open_input(str(tmp_path), StorageConfig(), SourceConfig())
    todo, _ = build_references(list_images(source), source.store, "", {})
    shard(tmp_path / "a.tar.gz", {f"{n}.png": bytes(len(data)) for n, data in enumerate(photos)}, "w:gz")
    opened_shards = []
    monkeypatch.setattr(
        "imagemill.pipeline.sources.tar.open_decompressed",
        lambda *place: opened_shards.append(place) or open_decompressed(*place),
    )
    reading = ImageReader(source, 1)
    for row in todo.to_pylist():
        with pytest.raises(ReadError, match="changed since it was listed"):
            reading.image(row)
    assert len(opened_shards) == SHARD_TRIES + 1


@pytest.mark.parametrize(("base", "seconds"), [("", RETRY_SECONDS), ("s3://b", RETRY_SECONDS), ("/photos", 0), (None, 0)])
def test_clients_of_buckets_and_the_web_may_take_longer(tmp_path, base, seconds):
    reading = ImageReader(open_input(str(tmp_path), StorageConfig(), SourceConfig()), 1)
    assert reading.retry_seconds({"base": base, "offset": None, "mask_offset": None}) == seconds


def test_open_input_refuses_unknown_files(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"x\.zip is a file.*\.tar"):
        listed(tmp_path / "x.zip")
    (tmp_path / "a.csv").write_text("colour,size\nred,3\n")
    with pytest.raises(ConfigError, match=r"no column of paths.*colour, size"):
        listed(tmp_path / "a.csv")
    with gzip.open(tmp_path / "empty.tar.gz", "wb") as empty:
        empty.write(b"")
    assert [image.problem and image.problem[:8] for image in images(tmp_path).values()] == ["CutShard"]
