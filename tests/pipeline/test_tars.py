"""Tars in practice: concatenated, truncated, damaged, compressed, with links, or no tars."""

import bz2
import gzip
import io
import json
import lzma
import random
import tarfile
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.plan import build_references
from imagemill.pipeline.run import run
from imagemill.pipeline.sources.image_reader import ImageReader
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.source import ListedImage, SourceConfig
from imagemill.pipeline.sources.tar import FORMAT, STILL_WRITTEN
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.shards import add, images, pictures, rows, shard


def zstd(data: bytes) -> bytes:
    return pa.Codec("zstd").compress(data, asbytes=True)


PACKED = {".tar": bytes, ".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress, ".tar.zst": zstd}


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members.items():
            add(archive, name, data)
    return file.getvalue()


def problems(path: Path) -> list[str]:
    return [image.problem for image in images(path).values() if image.problem]


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("padding", [0, 512, 4096, 777])
def test_tar_concatenation_is_read_to_the_end(tmp_path, crops, suffix, padding):
    """`cat a.tar b.tar` leaves zeros between the archives; both may be compressed."""
    photos, pack = pictures(crops, 5), PACKED[suffix]
    first = tar({f"a{n}.png": data for n, data in enumerate(photos[:2])})
    second = tar({f"b{n}.png": data for n, data in enumerate(photos[2:])})
    path = tmp_path / f"in{suffix}"
    names = ["a0.png", "a1.png", "b0.png", "b1.png", "b2.png"]
    expected = {f"in{suffix}/{name}": photo for name, photo in zip(names, photos, strict=True)}
    layouts = [pack(first + bytes(padding) + second)]
    if suffix != ".tar.zst":
        layouts.append(pack(first) + bytes(padding) + pack(second))
    for data in layouts:
        path.write_bytes(data)
        source = open_input(str(path), StorageConfig(), SourceConfig())
        todo, _ = build_references(list_images(source), source.store, "", {})
        reading = ImageReader(source, 1)
        assert {row["rel_path"]: row["problem"] for row in todo.to_pylist()} == dict.fromkeys(expected)
        # Runs read members forwards; reports may read them backwards.
        for row in [*todo.to_pylist(), *reversed(todo.to_pylist())]:
            assert reading.image(row) == expected[row["rel_path"]]


@pytest.mark.parametrize("suffix", PACKED)
def test_tar_data_after_the_end_mark_is_read_or_named(tmp_path, crops, suffix):
    pack, photo = PACKED[suffix], pictures(crops, 1)[0]
    first, second = tar({"a.png": photo}), tar({f"b{n}.png": photo for n in range(3)})
    prefix = "BadShard: the data after the end of an archive, from byte 51,200, is not a tar archive but "
    first += bytes(51_200 - len(first))
    path = tmp_path / f"in{suffix}"
    for rest, image_count, expected_problem in (
        (b"PK\3\4" + bytes(600), 1, f"{prefix}a ZIP archive"),
        (b"garbage" * 200, 1, f"{prefix}unknown data that begins with b'garbageg'"),
        (b"\x1f\x8b\x08" + bytes(600), 1, f"{prefix}data compressed by gzip"),
        (second[: 512 + len(photo) // 2], 1, "CutShard: b0.png is cut off: the members after it are lost"),
        (second[:300], 1, f"CutShard: it ends in the middle of a header, at byte 51,200: {STILL_WRITTEN}"),
        (bytes(10_240), 1, None),
    ):  # fmt: skip
        path.write_bytes(pack(first + rest))
        assert problems(path) == ([expected_problem] if expected_problem else [])
        assert len([image for image in images(path).values() if not image.problem]) == image_count
    if suffix != ".tar":
        path.write_bytes(pack(first) + b"garbage")
        [expected_problem] = problems(path)
        assert expected_problem.startswith("BadShard: the data after the end of an archive, from byte 51,200, is damaged: ")
        path.write_bytes(pack(first) + pack(second)[:-20])
        assert [problem.partition(":")[0] for problem in problems(path)] == ["CutShard"]
        assert len(images(path)) >= 2


def test_tar_damaged_header_is_not_the_end(tmp_path, crops):
    """Python's tarfile stops silently at a damaged header or at a truncated one."""
    photo = pictures(crops, 1)[0]
    data = tar({f"{n}.png": photo for n in range(3)})
    size = 512 + -(-len(photo) // 512) * 512
    (tmp_path / "damaged.tar").write_bytes(data[:size] + b"\1" * 512 + data[size + 512 :])
    (tmp_path / "cut.tar").write_bytes(data[: size + 300])
    for name, claimed_size in (("negative", -(1 << 20)), ("endless", 1 << 80)):
        header = bytearray(data[:size])
        header[124:136] = tarfile.itn(claimed_size, 12, tarfile.GNU_FORMAT)
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(header[:512])[0]
        (tmp_path / f"{name}.tar").write_bytes(data[:size] + header)
    listed_images = images(tmp_path)
    assert {name for name, image in listed_images.items() if not image.problem} == {
        f"{n}.tar/0.png" for n in ("damaged", "cut", "negative", "endless")
    }
    assert listed_images["damaged.tar"].problem.startswith(
        f"BadShard: the header after the member 0.png, at byte {size:,}, cannot be read"
    )
    assert listed_images["cut.tar"].problem.startswith("CutShard: it ends in the middle of a header, after the member 0.png")
    for name in ("negative.tar", "endless.tar"):
        assert listed_images[name].problem.startswith("BadShard: ")


@pytest.mark.parametrize(
    ("data", "expected_problem"),
    [
        (b"PK\3\4" + bytes(600), "BadShard: it is not a tar archive but a ZIP archive"),
        (b"<!DOCTYPE html><title>403</title>", "BadShard: it is not a tar archive but a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "BadShard: it is not a tar archive but a pointer of Git LFS"),
        (b"", "CutShard: the file is empty: it was cut off, or is still being written"),
        (gzip.compress(b""), "CutShard: the file is empty: it was cut off, or is still being written"),
        (bz2.compress(bytes(100))[:-9] + bytes(9), "BadShard: Invalid data stream: the members after it are lost"),
        (bytes(10_240), None),
    ],
    ids=["zip", "html", "lfs", "empty", "gzip of nothing", "damaged bzip2", "no members"],
)
def test_tar_error_names_the_real_format(tmp_path, data, expected_problem):
    (tmp_path / "in.tar").write_bytes(data)
    assert problems(tmp_path) == ([expected_problem] if expected_problem else [])


def test_tar_compression_is_detected_by_content(tmp_path, crops):
    """A gzipped tar is often called .tar, and an uncompressed one .tar.gz."""
    data = tar({"BZh9.png": pictures(crops, 1)[0]})
    for name, content in (
        ("a.tar", gzip.compress(data)),
        ("b.tar.gz", data),
        ("c.txz", lzma.compress(data)),
        ("d.tbz2", data),
    ):
        (tmp_path / name).write_bytes(content)
    assert {name: image.problem for name, image in images(tmp_path).items()} == {
        f"{name}/BZh9.png": None for name in ("a.tar", "b.tar.gz", "c.txz", "d.tbz2")
    }


def test_tar_captions_belong_to_their_archive(tmp_path, crops):
    photo = pictures(crops, 1)[0]
    archives = [tar({"0.png": photo, "0.txt": text, "0.mask.png": photo}) for text in (b"first", b"second")]
    (tmp_path / "in.tar").write_bytes(b"".join(archives))
    source = open_input(str(tmp_path), StorageConfig(), SourceConfig())
    listed_images = [image for image in list_images(source, masks=True) if isinstance(image, ListedImage)]
    assert [json.loads(image.extra or "")["txt"] for image in listed_images] == ["first", "second"]
    assert listed_images[0].mask_offset < listed_images[1].offset
    todo, _ = build_references(listed_images, source.store, "", {})
    assert [(row["problem"] or "").partition(":")[0] for row in todo.to_pylist()] == ["", "DuplicateName"]


def test_tar_sidecar_numbers_are_kept(tmp_path, crops):
    sidecar = b'{"a": 1e5, "b": 1.10, "c": NaN, "d": 123456789012345678901234567890, "e": "00501"}'
    shard(tmp_path / "in.tar", {"0.png": pictures(crops, 1)[0], "0.json": sidecar})
    [image] = images(tmp_path).values()
    assert image.extra == '{"json": ' + sidecar.decode().replace("NaN", '"NaN"') + "}"


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_long_names_and_links_are_read(tmp_path, crops, format):
    photo = pictures(crops, 1)[0]
    deep_folder = "/".join(["ä" * 60] * 4)
    with tarfile.open(tmp_path / "in.tar", "w", format=format) as archive:
        add(archive, f"{deep_folder}/a.b.c.png", photo)
        for kind, name in ((tarfile.LNKTYPE, "hard.png"), (tarfile.SYMTYPE, "soft.png"), (tarfile.LNKTYPE, "hard.txt")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, f"{deep_folder}/a.b.c.png"
            archive.addfile(link)
        pipe = tarfile.TarInfo("pipe.png")
        pipe.type = tarfile.FIFOTYPE
        archive.addfile(pipe)
    source = open_input(str(tmp_path), StorageConfig(), SourceConfig())
    todo, ignored = build_references(list_images(source), source.store, "", {})
    listed_images = {row["rel_path"].removeprefix("in.tar/"): row for row in todo.to_pylist()}
    assert {name: (row["problem"] or "").partition(":")[0] for name, row in listed_images.items()} == {
        f"{deep_folder}/a.b.c.png": "", "hard.png": "", "soft.png": "Link", "pipe.png": "BadName",
    }  # fmt: skip
    assert ignored == {"txt": 1}
    assert ImageReader(source, 1).image(listed_images["hard.png"]) == photo


def test_tar_new_members_are_found_despite_an_old_index(tmp_path, crops):
    """An index of an earlier file version does not hide the second archive."""
    photos, source, output = pictures(crops, 3), tmp_path / "in", tmp_path / "out"
    source.mkdir()
    (source / "s.tar").write_bytes(tar({"0.png": photos[0]}) + tar({"1.png": photos[1], "2.png": photos[2]}))
    config = RunConfig(task="denoise", input=str(source), output=str(output))
    assert run(config)["ok"] == 3
    [index] = (output / "shards").iterdir()
    table = pq.read_table(index)
    state = table.schema.metadata[b"state"].partition(b"\n")[2]
    pq.write_table(table.slice(0, 1).replace_schema_metadata(table.schema.metadata | {b"state": state}), index)
    second_record = run(config)
    assert (second_record["found"], second_record["done_before"], second_record["planned"]) == (3, 3, 0)
    assert set(rows(output)) == {f"s.tar/{n}.png" for n in range(3)}
    assert verify(Store(str(output))).problems == []


def test_tar_in_a_bucket_is_read_to_the_end(moto_bucket, crops):
    photos, bucket = pictures(crops, 2), Store(moto_bucket)
    archives = [tar({f"{n}.png": data}) for n, data in enumerate(photos)]
    bucket.write("a.tar", b"".join(archives))
    bucket.write("b.tar.gz", b"".join(map(gzip.compress, archives)))
    source = open_input(moto_bucket, StorageConfig(), SourceConfig())
    todo, _ = build_references(list_images(source), source.store, "", {})
    assert [ImageReader(source, 1).image(row) for row in todo.to_pylist()] == photos * 2


@given(st.sampled_from(sorted(PACKED)), st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans())
@settings(max_examples=150)
def test_tar_reports_every_damage(suffix, position, flip, is_cut):
    """All members are listed, or a reject of the shard reports that some are missing."""
    content = random.Random(1).randbytes(900)
    names = ("a.png", "c.png", "deep/d.png")
    first, second = tar({"a.png": content, "b.json": b"{}"}), tar(dict.fromkeys(names[1:], content))
    # If the file is cut between two archives, the first is complete and nothing indicates a second one.
    whole = PACKED[suffix](tar({**dict.fromkeys(names, content), "b.json": b"{}"}) if is_cut else first + second)
    place = int(position * len(whole))
    data = whole[:place] if is_cut else whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"in{suffix}").write_bytes(data)
        listed_images = images(Path(folder))
    members = {name for name, image in listed_images.items() if not image.problem}
    assert members == {f"in{suffix}/{name}" for name in names} or listed_images[f"in{suffix}"].problem


def test_tar_members_of_a_sample_are_read_alone(tmp_path, monkeypatch):
    """A run with --limit jumps from member to member; a whole run reads ahead."""
    members = {f"{n:02}.jpg": random.Random(n).randbytes(100_000) for n in range(30)}
    shard(tmp_path / "in.tar", members)
    store, fetched = Store(str(tmp_path)), []
    listed_images = [image for image in images(tmp_path).values() if image.offset is not None]
    read_range = Store.read_range
    monkeypatch.setattr(Store, "read_range", lambda *args: fetched.append(args[3]) or read_range(*args))
    for step, requests in ((1, 2), (10, 4)):
        fetched.clear()
        reader = FORMAT.reader(store, "in.tar", SourceConfig())
        for image in listed_images[step - 1 :: step]:
            assert reader.read(image.offset, image.size) == members[image.rel_path.removeprefix("in.tar/")]
        # The first request finds out whether the shard is compressed.
        assert len(fetched) == requests
        assert sum(fetched) < (3_200_000 if step == 1 else 300_100)
