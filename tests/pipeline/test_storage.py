import hashlib
import logging
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
from botocore.awsrequest import AWSResponse
from moto.s3.models import FakeKey

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store, split_scheme
from imagemill.pipeline.storage_config import CHECKSUMS, StorageConfig
from imagemill.pipeline.store_failures import busy_pause, reason
from tests.support.races import race_to_create

NAMES = [
    "plain.jpg",
    "a/b/c/deep.png",
    "_under/_a.jpg",
    ".hidden/.a.jpg",
    "with space/a b.jpg",
    "per%20cent/100%.jpg",
    "hash#1/a#b.jpg",
    "question?/a?b=c&d.jpg",
    "star*/[a]{b}.jpg",
    "quote'\"/a;b$c.jpg",
    "plus+/a+b=c@d,e.jpg",
    "日本語/éüß 🙂.jpg",
    "e\u0301/decomposed.jpg",
    "colon:/a::b.jpg",
    "~tilde/~a.jpg",
]


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_store_lists_and_reads_what_it_writes(any_url: str) -> None:
    store = Store(any_url)
    for number, name in enumerate(NAMES):
        store.write(name, name.encode() * number)
    listed = {e.path: e.size for e in store.entries()}
    assert listed == {name: len(name.encode()) * number for number, name in enumerate(NAMES)}
    assert {name: store.read(name) for name in NAMES} == {name: name.encode() * n for n, name in enumerate(NAMES)}
    assert all(store.exists(name) for name in NAMES)


def test_store_lists_one_folder(any_url: str) -> None:
    store = Store(any_url)
    for name in ("in/a.jpg", "in/x/b.jpg", "inside/c.jpg", "in.jpg", "other/in/d.jpg"):
        store.write(name, b"1")
    assert sorted(e.path for e in store.entries("in")) == ["in/a.jpg", "in/x/b.jpg"]
    assert sorted(e.path for e in Store(f"{any_url}/in").entries()) == ["a.jpg", "x/b.jpg"]


def test_store_lists_nothing_for_missing_folders(any_url: str) -> None:
    store = Store(any_url)
    assert list(store.entries()) == []
    assert list(store.entries("nothing/here")) == []
    assert not store.exists("nothing")
    store.write("a/b.jpg", b"1")
    store.delete("a/b.jpg")
    assert list(store.entries("a")) == []
    assert list(store.entries()) == []


def test_store_measures_age_by_its_clock(any_url: str) -> None:
    store = Store(any_url)
    store.write("a/b", b"1")
    assert -2 < store.age("a/b") < 60
    assert [e.path for e in store.entries()] == ["a/b"]
    with pytest.raises(FileNotFoundError):
        store.age("a/gone")


def test_store_missing_object_is_file_not_found(any_url: str) -> None:
    store = Store(any_url)
    store.write("there.jpg", b"1")
    with pytest.raises(FileNotFoundError):
        store.read("gone.jpg")


def test_store_write_replaces_and_changes_the_etag(any_url: str) -> None:
    store = Store(any_url)
    store.write("a/b.jpg", b"first")
    [old_entry] = store.entries()
    store.write("a/b.jpg", b"other")
    [new_entry] = store.entries()
    assert store.read("a/b.jpg") == b"other"
    assert (old_entry.size, new_entry.size) == (5, 5)
    assert old_entry.etag != new_entry.etag


def test_store_etag_is_stable(any_url: str) -> None:
    store = Store(any_url)
    store.write("a.jpg", b"1")
    assert [e.etag for e in store.entries()] == [e.etag for e in Store(any_url).entries()]


@pytest.mark.parametrize("any_url", ["local", "moto"], indirect=True)
def test_store_create_keeps_an_existing_file(any_url: str) -> None:
    store = Store(any_url)
    assert store.create("x/one", b"mine") is True
    assert store.create("x/one", b"theirs") is False
    assert Store(any_url).create("x/one", b"") is False
    assert store.read("x/one") == b"mine"
    assert [e.path for e in store.entries()] == ["x/one"]


@pytest.mark.parametrize("any_url", ["local", "moto"], indirect=True)
def test_store_create_has_one_winner(any_url: str) -> None:
    assert race_to_create(any_url, "prize") == [Store(any_url).read("prize")]


def test_store_can_be_pickled(any_url: str) -> None:
    store = Store(any_url, StorageConfig(region="us-east-1"))
    store.write("a.jpg", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert (copy.url, copy.root, copy.scheme, copy.config) == (store.url, store.root, store.scheme, store.config)
    assert copy.read("a.jpg") == b"1"


def test_store_uris_round_trip(any_url: str) -> None:
    store = Store(any_url)
    store.write("a b/c.jpg", b"1")
    uri = store.uri("a b/c.jpg")
    assert uri == f"{any_url}/a b/c.jpg"
    assert store.relative(store.full("a b/c.jpg")) == "a b/c.jpg"
    assert Store(uri.rpartition("/")[0]).read("c.jpg") == b"1"


def test_store_ignores_a_trailing_slash(any_url: str) -> None:
    Store(f"{any_url}/").write("a.jpg", b"1")
    assert [e.path for e in Store(any_url).entries()] == ["a.jpg"]
    assert Store(f"{any_url}/").url == Store(any_url).url


def test_store_paths_stay_below_its_root(tmp_path: Path) -> None:
    assert Store(str(tmp_path)).lies_in(Store("/"))
    assert Store("/").lies_in(Store("/"))
    assert not Store("/").lies_in(Store(str(tmp_path)))
    assert Store("/").full("tmp") == "/tmp"


def test_store_can_be_a_whole_bucket(moto_bucket: str) -> None:
    store = Store(moto_bucket)
    assert list(store.entries()) == []
    store.write("a/b.jpg", b"1")
    assert [e.path for e in store.entries()] == ["a/b.jpg"]


def test_store_ignores_folder_markers(moto_bucket: str) -> None:
    store = Store(moto_bucket)
    store.fs.call_s3("put_object", Bucket=store.root, Key="in/folder/", Body=b"")
    store.write("in/folder/a.jpg", b"1")
    assert [e.path for e in store.entries()] == ["in/folder/a.jpg"]


@pytest.mark.parametrize(
    "paths", [["in/a.jpg", "in//b.jpg", "in//x/c.jpg", "in//y//d.jpg"], ["in//b.jpg"], ["/a.jpg", "b.jpg"]]
)
def test_store_lists_nameless_folders_once(moto_bucket: str, paths: list[str]) -> None:
    store = Store(moto_bucket)
    for path in paths:
        store.write(path, b"1")
    assert sorted(e.path for e in store.entries()) == sorted(paths)
    input_paths = [path for path in paths if path.startswith("in/")]
    assert sorted(e.path for e in store.entries("in")) == sorted(input_paths)


def test_store_listing_spans_pages(moto_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "10")
    store = Store(moto_bucket)
    for n in range(25):
        store.write(f"x/{n:04d}.jpg", b"1")
    assert len(store.fs.call_s3("list_objects_v2", Bucket=store.root)["Contents"]) == 10
    assert len({e.path for e in store.entries("x")}) == 25


def test_store_reads_ranges_with_whole_checksums(rclone_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CHECKSUMS:
        monkeypatch.delenv(f"AWS_{name.upper()}")
    s3fs.S3FileSystem.clear_instance_cache()
    store = Store(rclone_bucket)
    store.write("a", b"0123456789" * 1_000)
    with store.fs.open(store.full("a"), "rb", block_size=16) as f:
        f.seek(5_000)
        assert f.read(3) == b"012"
    assert store.read("a") == b"0123456789" * 1_000


def test_store_reports_bucket_errors(rclone_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Store(rclone_bucket).exists()
    assert not Store("s3://there-is-none").exists()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PermissionError):
        Store(rclone_bucket).exists()
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1: must begin with http"):
        Store(rclone_bucket, StorageConfig(endpoint_url="127.0.0.1:1"))


def test_store_refused_key_is_a_storage_error(rclone_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    Store(rclone_bucket).fs.clear_instance_cache()
    with pytest.raises(StorageError, match="cannot be listed"):
        list(Store(rclone_bucket).entries())


@pytest.mark.parametrize(
    "url", ["http://host/a", "https://host/a", "gs://b/a", "ftp://h/a", "S4://b", "://a", "zip::s3://b/a"]
)
def test_store_refuses_other_schemes(url: str) -> None:
    with pytest.raises(ConfigError, match="file, s3"):
        split_scheme(url)


@pytest.mark.parametrize("url", ["s3:/bucket/a", "s3:bucket", "S3:/b", "file:/a", "s3:"])
def test_store_refuses_a_scheme_without_slashes(url: str) -> None:
    with pytest.raises(ConfigError, match=r"write (s3|file)://, or \./.* for a local folder of this name"):
        Store(url)
    assert Store(f"./{url}").root.endswith(url)
    assert Store("s3").local


def test_store_needs_a_bucket() -> None:
    with pytest.raises(ConfigError, match="bucket"):
        Store("s3://")


def test_store_local_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert split_scheme("in/x/..") == ("file", str(tmp_path / "in"))
    assert split_scheme(f"file://{tmp_path}/a/") == ("file", str(tmp_path / "a"))
    assert split_scheme("~/a") == ("file", "/home/me/a")
    assert split_scheme("s3://bucket/a/b/") == ("s3", "bucket/a/b")


def test_storage_config_refuses_unknown_keys() -> None:
    with pytest.raises(ValueError, match="secret"):
        StorageConfig.model_validate({"secret": "x"})


def test_local_write_leaves_no_other_file(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("a/b.jpg", b"1")
    store.create("a/c", b"2")
    store.create("a/c", b"3")
    assert files_below(tmp_path) == {"a/b.jpg", "a/c"}


def test_local_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    store.write("file", b"1")
    (tmp_path / "folder").mkdir()
    for attempt in (store.write, store.create):
        with pytest.raises(OSError, match="file"):
            attempt("file/below", b"2")
    with pytest.raises(OSError, match="folder"):
        store.write("folder", b"2")
    assert files_below(tmp_path) == {"file"}
    assert store.read("file") == b"1"


def test_local_write_accepts_the_longest_name(tmp_path: Path) -> None:
    name = "ü" * 125 + ".jpg"
    store = Store(str(tmp_path))
    store.write(name, b"1")
    assert [e.path for e in store.entries()] == [name]


def test_local_write_is_atomic_for_readers(tmp_path: Path) -> None:
    store, contents = Store(str(tmp_path)), (b"a" * 300_000, b"b" * 300_000)
    store.write("x", contents[0])
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            for content in contents:
                store.write("x", content)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        assert {store.read("x") for _ in range(100)} <= set(contents)
    finally:
        stop.set()
        writer.join()


def test_reason_is_one_line() -> None:
    assert reason(ValueError("two\nlines  here")) == "ValueError: two lines here"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("x" * 5000))) < 400


@pytest.fixture
def odd_etags(moto_bucket: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a bucket whose etags have 32 hex digits but are no MD5, as on S3 Express."""
    real = FakeKey.etag.fget

    def etag(key: FakeKey) -> str:
        return f'"{hashlib.md5(b"odd" + real(key).encode()).hexdigest()}"'

    monkeypatch.setattr(FakeKey, "etag", property(etag))
    return moto_bucket


def test_etag_without_md5_is_one_warning(odd_etags: str, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(odd_etags)
    content = {f"{n}.bin": bytes([n]) * 1000 for n in range(12)}
    with caplog.at_level(logging.WARNING, "imagemill.storage"):
        for name, data in content.items():
            store.write(name, data)
        with ThreadPoolExecutor(4) as pool:
            assert dict(zip(content, pool.map(store.read, content), strict=True)) == content
    [warning] = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{odd_etags} at http://127.0.0.1:")
    assert "an etag is not the MD5 of its object" in warning


def test_odd_etag_leaves_others_compared(moto_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to objects that a gateway encrypted, damage of plain objects is still detected."""
    store = Store(moto_bucket)
    for name in ("a.bin", "b.bin", "odd.bin"):
        store.write(name, name.encode() * 100)
    real, body, flips = FakeKey.etag.fget, Store._body, iter([True, False])
    monkeypatch.setattr(FakeKey, "etag", property(lambda key: f'"{"0" * 32}"' if key.name == "odd.bin" else real(key)))
    assert store.read("a.bin") == b"a.bin" * 100
    assert store.read("odd.bin") == b"odd.bin" * 100

    def flip_first_byte(reading_store: Store, answer: dict[str, Any]) -> bytes:
        data = body(reading_store, answer)
        return bytes([data[0] ^ 1]) + data[1:] if next(flips) else data

    monkeypatch.setattr(Store, "_body", flip_first_byte)
    assert store.read("b.bin") == b"b.bin" * 100


def test_run_over_odd_etags_warns_once(
    odd_etags: str, moto_url: str, tmp_path: Path, crops: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    """Workers detect the etags, and the run warns once."""
    storage = StorageConfig(endpoint_url=moto_url)
    source = Store(f"{odd_etags}/in", storage)
    for number, crop in enumerate(crops[:4]):
        source.write(f"{number}.png", encode_rgb(crop[:64, :64], "PNG"))
    with caplog.at_level(logging.WARNING):
        record = run(RunConfig(task="denoise", input=source.url, output=str(tmp_path / "out"), storage=storage))
    assert (record["ok"], record["rejected"]) == (4, 0)
    [warning] = [r.getMessage() for r in caplog.records if r.name.startswith("imagemill")]
    assert warning.startswith(f"{odd_etags} at {moto_url}: an etag is not")


def test_store_refused_request_is_given_up_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience with one request ends although the store answers all other requests."""
    monkeypatch.setattr("imagemill.pipeline.pauses.PATIENCE_SECONDS", 0.05)
    busy, fine = (AWSResponse("http://store/x", status, {"Retry-After": "0"}, None) for status in (503, 200))
    request: dict[str, Any] = {"context": {}}
    assert busy_pause((busy, {}), attempts=1, request_dict=request) == 0.0
    time.sleep(0.06)
    assert busy_pause((fine, {}), attempts=1, request_dict={"context": {}}) is None
    assert busy_pause((busy, {}), attempts=1, request_dict={"context": {}}) == 0.0
    assert busy_pause((busy, {}), attempts=2, request_dict=request) is None
