"""The record of the files that a command wrote, which it may therefore replace."""

import os
import shutil
from pathlib import Path

import pytest

from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.file_record import FOLDER, FileRecord
from imagemill.pipeline.storage import Store

NAMES = [f"x/{number}.png" for number in range(200)]


def fill(place: Store, names: list[str], data: bytes = b"ours", overwrite: bool = False) -> None:
    with FileRecord(place, overwrite) as written:
        written.check(names)
        written.announce(names)
        for name in names:
            written.write(name, data)


@pytest.mark.parametrize("names", [NAMES[:2], NAMES[:12]], ids=["few", "many"])
def test_file_record_allows_only_recorded_files(any_url, names, monkeypatch):
    """A bucket is listed if the names are many."""
    monkeypatch.setattr("imagemill.pipeline.output.file_record.LISTED_FROM", 10)
    place = Store(any_url)
    place.write("x/mine.png", b"mine")
    fill(place, names)
    fill(place, names, b"again")
    assert place.read(names[0]) == b"again"

    # The user changes the file but not its size.
    place.write(names[1], b"mine!")
    with pytest.raises(ConfigError, match=rf"{place.uri(names[1])}: exists, and imagemill did not write it .*--overwrite"):
        fill(place, names)
    place.write("new.png", b"mine")
    with pytest.raises(ConfigError, match=rf"{place.uri('new.png')}: exists"):
        fill(place, ["new.png", *names[2:]])
    assert place.read(names[0]) == b"again"
    fill(place, names, b"last", overwrite=True)
    fill(place, names)
    # The record stays a single file after several additions.
    assert len(list(place.entries(FOLDER))) == 1
    assert place.read("x/mine.png") == b"mine"


def test_file_record_survives_a_copy_of_the_folder(tmp_path):
    place = Store(f"{tmp_path}/place")
    fill(place, NAMES)
    shutil.copytree(place.root, tmp_path / "copy", copy_function=shutil.copyfile)
    os.utime(tmp_path / "copy" / NAMES[0], (0, 0))
    fill(Store(f"{tmp_path}/copy"), NAMES)


def test_file_record_lets_a_killed_command_repeat(tmp_path):
    """A killed command may replace the files that it had announced, and no others."""
    place = Store(str(tmp_path))
    killed = FileRecord(place)
    killed.check(NAMES)
    killed.announce(NAMES[:100])
    for name in NAMES[:50]:
        killed.write(name, b"half")
    place.write(NAMES[150], b"mine")
    fill(place, NAMES[:100])
    with pytest.raises(ConfigError, match=r"150\.png"):
        fill(place, NAMES)


def test_file_record_lets_a_failed_command_repeat(tmp_path):
    place = Store(str(tmp_path))
    (tmp_path / "b.png").mkdir()
    names = ["a.png", "b.png", "c.png"]

    def write() -> None:
        with FileRecord(place) as written:
            written.announce(names)
            for name in names:
                written.write(name, b"ours")

    with pytest.raises(IsADirectoryError):
        write()
    (tmp_path / "b.png").rmdir()
    place.write("c.png", b"mine")
    fill(place, ["a.png", "b.png"])
    with pytest.raises(ConfigError, match=r"c\.png"):
        fill(place, ["c.png"])


@pytest.mark.parametrize("make", ["broken link", "link", "folder", "pipe"])
def test_file_record_protects_special_files(tmp_path, make):
    original = tmp_path / "original"
    original.write_bytes(b"mine")
    special_path = tmp_path / "place/a.png"
    special_path.parent.mkdir()
    if make == "folder":
        special_path.mkdir()
    elif make == "pipe":
        os.mkfifo(special_path)
    else:
        special_path.symlink_to(original if make == "link" else tmp_path / "nowhere")
    path_state = os.lstat(special_path)
    with pytest.raises(ConfigError, match=r"a.png: (exists|is a folder)"):
        fill(Store(str(special_path.parent)), ["a.png"])
    assert os.lstat(special_path) == path_state


def test_damaged_file_record_protects_its_files(tmp_path, caplog):
    place = Store(str(tmp_path))
    fill(place, ["a.png"])
    [record] = Path(tmp_path / FOLDER).iterdir()
    record.write_bytes(record.read_bytes()[:40])
    with pytest.raises(ConfigError, match=r"a\.png"):
        fill(place, ["a.png"])
    assert "damaged" in caplog.text
