"""A folder that cannot be listed is one reject, and nothing in it counts as gone."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imagemill.jobs.batch import run_and_show
from imagemill.jobs.removed import list_sources
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.rejects import read_waiting_rejects
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.shards import images, listed, pictures, rows

ADVICE = "Give this user permission to read and enter the folder, or move the folder away"


@pytest.fixture
def album(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    """Return an input with a good and a broken image in each of two folders."""
    photos = pictures(crops, 3)
    for number, name in enumerate(("open", "private")):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "good.png").write_bytes(photos[number])
        (tmp_path / "in" / name / "bad.png").write_bytes(b"no image")
    return tmp_path / "in"


def lock(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Let the system refuse to list folders. Root may list folders of any mode."""
    scandir = os.scandir

    def refuse(path: Any = ".") -> Any:
        if Path(path) in folders:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refuse)


def config_of(album: Path, **options: Any) -> RunConfig:
    return RunConfig(task="denoise", input=str(album), output=str(album.parent / "out"), max_reject_fraction=0.5, **options)


def read_waiting(output: Store) -> set[str]:
    return set(read_waiting_rejects(output, ["rel_path"])["rel_path"].to_pylist())


def test_listing_names_a_folder_without_permission(user):
    """The kernel refuses: the test runs as a user without root's rights."""
    for name in ("a.jpg", "private/b.jpg", "private/deep/c.jpg", "drafts/d.jpg"):
        Store(str(user)).write(name, b"1")
    for name in ("private", "drafts"):
        (user / name).chmod(0o311)
    listed_images = images(user, exclude=["drafts/"])
    problems = {name: image.problem for name, image in listed_images.items()}
    assert problems == {"a.jpg": None, "private": f"UnreadableFolder: cannot be listed: Permission denied. {ADVICE}"}
    (user / "a.jpg").unlink()
    config = RunConfig(task="denoise", input=str(user), output=f"{user}-out")
    with pytest.raises(StorageError, match=rf"^input {user}/drafts: cannot be listed.*\(1 more folder cannot be listed\)$"):
        build_plan(resolve(config))
    with pytest.raises(StorageError, match=f"{user}/private: cannot be listed: Permission denied. Give this user"):
        images(user / "private")


def test_broken_link_may_be_a_folder(user):
    """A link to a folder cannot be told from other links while its target cannot be reached."""
    inside, outside = user / "in", user / "outside"
    Store(str(user)).write("outside/photos/St.Gallen/a.jpg", b"1")
    Store(str(user)).write("in/b.jpg", b"1")
    for name, target in (("St.Gallen", outside / "photos/St.Gallen"), ("disk", "/nowhere/disk"), ("caption.txt", "/nowhere"),
                         (".#edited", "someone@host.1234"), ("@eaDir", "/nowhere")):  # fmt: skip
        (inside / name).symlink_to(target)
    reached = {"b.jpg": None, "St.Gallen/a.jpg": None}
    advice = "Mount the disk of its target, or remove the link"
    missing = f"UnreadableFolder: a broken link or unreadable file: No such file or directory. {advice}"
    assert {name: image.problem for name, image in images(inside).items()} == reached | {"disk": missing}
    (outside / "photos").chmod(0)
    denied = missing.replace("No such file or directory", "Permission denied")
    assert {name: image.problem for name, image in images(inside).items()} == {
        "b.jpg": None, "St.Gallen": denied, "disk": missing
    }  # fmt: skip
    (outside / "photos").chmod(0o755)
    assert images(inside, exclude=["disk"]).keys() == reached.keys()
    assert sorted(entry for entry in listed(inside) if isinstance(entry, str)) == ["excluded", "other", "txt"]


def test_unreadable_folder_is_one_reject(album, monkeypatch, caplog, capsys):
    lock(monkeypatch, album / "private")
    config = config_of(album)
    run_and_show(config)
    record = run(config)
    assert (
        f"input {album}/private: cannot be listed: Permission denied. {ADVICE}. Such a folder is one reject" in caplog.text
    )
    assert (record["found"], record["planned"], record["rejects_waiting"], record["done_before"]) == (3, 0, 2, 1)
    reject = rows(album.parent / "out", "rejects")["private"]
    assert (reject["stage"], reject["error_class"]) == ("list", "UnreadableFolder")
    with pytest.raises(StorageError, match=r"private: cannot be listed.*With --strict, this is an error"):
        run(config.model_copy(update={"strict": True}))

    monkeypatch.undo()
    assert run(config)["ok"] == 1
    assert read_waiting(Store(str(config.output))) == {"open/bad.png", "private/bad.png"}


def test_images_in_an_unreadable_folder_are_not_gone(album, monkeypatch):
    output = Store(str(album.parent / "out"))
    assert run(config_of(album))["rejected"] == 2
    lock(monkeypatch, album / "private")
    (album / "open/bad.png").unlink()
    # The folder is the only reject of this run. It is not an image, so max_reject_fraction does not apply.
    assert run(config_of(album))["rejected"] == 1
    assert read_waiting(output) == {"private", "private/bad.png"}
    sources = list_sources(output)
    assert sources.problems == [f"input {album}/private: UnreadableFolder: cannot be listed: Permission denied. {ADVICE}"]
