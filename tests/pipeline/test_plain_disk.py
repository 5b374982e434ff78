"""File systems with fewer features than usual on Linux: exFAT, FUSE, network shares."""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagemill.jobs.decode import decode_output
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.output.name_clashes import fold_name
from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.storage import Store
from tests.support.outputs import compressed
from tests.support.races import race_to_create

SCRIPT = Path(__file__).parents[1] / "support/plain_disk.py"


@pytest.fixture
def plain_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount the file system of plain_disk.py; yield its folder."""
    backing_folder, mount_folder = tmp_path / "behind", tmp_path / "plain"
    backing_folder.mkdir()
    mount_folder.mkdir()
    command = [sys.executable, str(SCRIPT), str(backing_folder), str(mount_folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        while server.poll() is None and not os.path.ismount(mount_folder):
            time.sleep(0.05)
        if server.poll() is not None:
            pytest.skip("no FUSE here: it takes /dev/fuse, libfuse and mfusepy")
        try:
            yield mount_folder
        finally:
            subprocess.run(["umount", "-l", mount_folder], check=False)
            server.terminate()


def test_plain_disk_store_works(plain_disk: Path) -> None:
    store = Store(str(plain_disk))
    (plain_disk / "a").touch()
    with pytest.raises(PermissionError):
        (plain_disk / "b").hardlink_to(plain_disk / "a")
    assert store.folds_case()
    assert store.create("x/one", b"mine") is True
    assert store.create("x/one", b"theirs") is False
    store.write("x/two", b"first", durable=True)
    store.write("x/two", b"second", durable=True)
    assert (store.read("x/one"), store.read("x/two")) == (b"mine", b"second")
    assert sorted(e.path for e in store.entries("x")) == ["x/one", "x/two"]
    with Lease(store) as first:
        pass
    with Lease(store) as second:
        assert (first.fencing_token, second.fencing_token) == (1, 2)


def test_plain_disk_create_has_one_winner(plain_disk: Path) -> None:
    assert race_to_create(str(plain_disk), "prize") == [(plain_disk / "prize").read_bytes()]


def test_plain_disk_run_accounts_for_each_image(plain_disk: Path, tmp_path: Path, crops: list[np.ndarray]) -> None:
    """Names that differ only in case, or that the disk rejects, become files in _renamed/."""
    names = ["A.jpg", "a.jpg", "b.png", "in/É.png", "in/e\u0301.png", "what?/c:d.png"]
    source, output = Store(str(tmp_path / "in")), Store(str(plain_disk / "out"))
    for name, crop in zip(names, crops, strict=False):
        source.write(name, encode_rgb(crop[:64, :64], "JPEG" if name.endswith("jpg") else "PNG"))
    config = RunConfig(task="denoise", input=source.url, output=output.url)
    record = run(config)
    assert (record["planned"], record["ok"], record["rejected"]) == (6, 6, 0)
    assert verify(output).problems == []
    rows = read_parts(output, list_parts(output, "results"), ["rel_path", "output_uri"]).to_pylist()
    expected = {name: f"images/_renamed/{image_id(name)}{name[-4:]}" for name in names} | {"b.png": "images/b.png"}
    assert {row["rel_path"]: row["output_uri"] for row in rows} == expected
    # A later image does not replace the output file of a row whose source is gone.
    (tmp_path / "in/b.png").unlink()
    source.write("B.png", encode_rgb(crops[9][:64, :64], "PNG"))
    assert run(config)["ok"] == 1
    assert verify(output).problems == []


def test_plain_disk_decode_keeps_names_apart(plain_disk: Path, tmp_path: Path, crops: list[np.ndarray]) -> None:
    names = ["A.png", "a.png", "b.png"]
    output = compressed(tmp_path, {name: crop[20:48, 30:58] for name, crop in zip(names, crops, strict=False)})
    assert decode_output(output, Store(str(plain_disk / "new/dest"))) == 3
    written_paths = {e.path for e in Store(str(plain_disk / "new/dest")).entries() if not e.path.startswith(".")}
    assert written_paths == {"b.png", *(f"_renamed/{image_id(name)}.png" for name in names[:2])}


NO_LINKS = ("EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EMLINK", "EXDEV", "EACCES", "EINVAL")


@pytest.mark.parametrize("name", NO_LINKS)
def test_store_creates_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise OSError(getattr(errno, name), name)

    monkeypatch.setattr(os, "link", link)
    store = Store(str(tmp_path))
    assert [store.create("a/b", b"mine"), store.create("a/b", b"theirs")] == [True, False]
    assert [(e.path, store.read(e.path)) for e in store.entries()] == [("a/b", b"mine")]


def test_store_removes_a_created_file_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty claim would make all later runs wait."""
    original_function = Path.open

    def open_and_close(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = original_function(path, mode, *args, **options)
        if mode == "xb":
            file.close()
        return file

    monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(OSError(errno.EPERM, "no links")))
    monkeypatch.setattr(Path, "open", open_and_close)
    with pytest.raises(ValueError, match="closed"):
        Store(str(tmp_path)).create("a", b"1")
    assert list(tmp_path.iterdir()) == []


def test_store_accepts_its_link_after_a_lost_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats a request if the reply is lost, and then reports that the file exists."""
    original_function = os.link

    def link_twice(source: Any, link_path: Any, **args: Any) -> None:
        original_function(source, link_path, **args)
        original_function(source, link_path, **args)

    monkeypatch.setattr(os, "link", link_twice)
    store = Store(str(tmp_path))
    assert [store.create("a", b"mine"), store.create("a", b"theirs")] == [True, False]


@pytest.mark.parametrize(("name", "is_tolerated"), [("EINVAL", True), ("ENOTSUP", True), ("ENOSYS", True), ("EIO", False)])
def test_store_tolerates_a_missing_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_tolerated: bool
) -> None:
    def fsync(file: int) -> None:
        raise OSError(getattr(errno, name), name)

    monkeypatch.setattr(os, "fsync", fsync)
    store = Store(str(tmp_path))
    if is_tolerated:
        store.write("a", b"1", durable=True)
        assert store.read("a") == b"1"
    else:
        with pytest.raises(OSError, match=name):
            store.write("a", b"1", durable=True)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A.jpg", "a.jpg", True),
        ("a/B.jpg", "A/b.JPG", True),
        ("é.png", "e\u0301.png", True),
        ("straße.png", "STRASSE.png", True),
        ("a./b.png", "a/b.png", True),
        ("a.jpg", "b.jpg", False),
        ("a/b.jpg", "ab.jpg", False),
    ],
)
def test_names_fold_like_on_a_plain_disk(one: str, other: str, same: bool) -> None:
    assert (fold_name(one) == fold_name(other)) is same


def test_linux_disk_does_not_fold_case(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    assert not store.folds_case()
    assert list(store.entries()) == []
