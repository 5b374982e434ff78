"""Listings of local disks: links, roots, permissions, files that disappear meanwhile."""

import threading
from pathlib import Path

import pytest

from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.source import SourceConfig
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig


def test_disk_root_is_a_store(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.png").write_bytes(b"x")
    store, relative_path = Store("/"), str(tmp_path)[1:]
    assert [entry.path for entry in store.entries(relative_path)] == [f"{relative_path}/a/b.png"]
    assert store.read(f"{relative_path}/a/b.png") == b"x"


def test_disk_root_files_have_one_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.png").write_bytes(b"x")
    relative_path = str(tmp_path / "b.png")[1:]
    monkeypatch.setattr("os.walk", lambda *_, **__: [("/", [], [relative_path])])
    assert [entry.path for entry in Store("/").entries()] == [relative_path]


def test_listing_during_writes_is_complete(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    stored_paths = {f"lease/{n:08d}.json" for n in range(300)}
    for path in stored_paths:
        store.write(path, b"1")
    stop = threading.Event()

    def write_beats() -> None:
        while not stop.is_set():
            store.write("lease/00000299.beat", b"1")

    writers = [threading.Thread(target=write_beats) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(100):
            assert stored_paths <= {e.path for e in store.entries()}
    finally:
        stop.set()
        for writer in writers:
            writer.join()


def test_listing_follows_links_for_sizes(tmp_path: Path) -> None:
    Store(str(tmp_path / "elsewhere")).write("big.jpg", b"12345")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link.jpg").symlink_to(tmp_path / "elsewhere/big.jpg")
    store = Store(str(tmp_path / "in"))
    assert [(e.path, e.size) for e in store.entries()] == [("link.jpg", 5)]


def test_listing_with_a_new_link_renames_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "in"))
    for path in ("trip/a.jpg", "trip/deep/b.jpg"):
        store.write(path, b"1")
    Store(str(tmp_path / "elsewhere")).write("c.jpg", b"1")
    for link, to in (("best", "trip"), ("more", "trip/deep"), ("far", "../elsewhere"), ("trip/up", "..")):
        (tmp_path / "in" / link).symlink_to(to)
    assert [e.path for e in store.entries()] == ["trip/a.jpg", "trip/deep/b.jpg", "far/c.jpg"]


def test_listing_survives_a_dangling_link(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert "a.jpg" in [e.path for e in Store(str(tmp_path)).entries()]


def test_listing_explains_a_forbidden_folder(user: Path) -> None:
    store = Store(str(user))
    for path in ("a.jpg", "x/b.jpg"):
        store.write(path, b"1")
    (user / "x").chmod(0o311)
    with pytest.raises(StorageError, match=r"/x: cannot be listed: Permission denied. Give this user permission to"):
        list(store.entries())


def test_listing_includes_unreadable_files(user: Path) -> None:
    store = Store(str(user))
    for path in ("a.jpg", "x/b.jpg"):
        store.write(path, b"1")
    (user / "x").chmod(0o644)
    assert [(e.path, bool(e.problem)) for e in store.entries()] == [("a.jpg", False), ("x/b.jpg", True)]


def test_empty_object_next_to_a_prefix_is_a_folder(moto_bucket: str) -> None:
    """S3 consoles create empty objects `photos` and `photos/` next to `photos/a.jpg`."""
    bucket = moto_bucket.removeprefix("s3://")
    store = Store(f"{moto_bucket}/photos")
    for key in ("photos", "photos/", "photos/x", "photos/x/", "photos/x/deep", "photos/set.parquet", "photos/empty/"):
        store.fs.call_s3("put_object", Bucket=bucket, Key=key, Body=b"")
    for path in ("a.jpg", "x/b.jpg", "x/deep/c.jpg", "x/deep.d", "set.parquet/e.png", "set.parquet.txt"):
        store.write(path, b"1")
    store.write("empty.jpg", b"")
    files = {"a.jpg", "x/b.jpg", "x/deep/c.jpg", "x/deep.d", "set.parquet/e.png", "set.parquet.txt", "empty.jpg"}
    assert sorted(entry.path for entry in store.entries()) == sorted(files)
    for path in ("", "x", "x/deep", "set.parquet"):
        with pytest.raises(IsADirectoryError):
            store.entry(path)
    assert store.entry("empty.jpg").size == 0


def test_prefix_is_an_input_despite_equal_names(moto_bucket: str) -> None:
    bucket, store = moto_bucket.removeprefix("s3://"), Store(f"{moto_bucket}/photos")
    store.write("a.jpg", b"1")
    for body in (b"", b"a note of somebody"):
        store.fs.call_s3("put_object", Bucket=bucket, Key="photos", Body=body)
        for url in (store.url, f"{store.url}/"):
            source = open_input(url, StorageConfig(), SourceConfig())
            assert [image.rel_path for image in list_images(source)] == ["a.jpg"]
    Store(moto_bucket).write("note.txt", b"1")
    with pytest.raises(ConfigError, match="is a file"):
        open_input(f"{moto_bucket}/note.txt", StorageConfig(), SourceConfig())
