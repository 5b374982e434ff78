"""System files next to photos are counted and skipped; a user's hidden folders are read."""

from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.jobs.batch import run_and_show
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.run import run
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.source import ListedImage, SourceConfig
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.shards import listed, pictures, shard

SYSTEM_FOLDERS = {
    "__MACOSX", "deep/__MACOSX", ".AppleDouble", ".Spotlight-V100", ".fseventsd", ".Trashes", "@eaDir", "deep/@eaDir",
    "#recycle", "@Recycle", ".@__thumb", ".Trash-1000", ".thumbnails", "deep/.thumbnails", "lost+found", "$RECYCLE.BIN",
    "$Recycle.Bin", "System Volume Information", ".stversions", ".dtrash", ".ipynb_checkpoints", "#snapshot", ".git",
}  # fmt: skip
SYSTEM_FILES = [
    "._a.jpg", "deep/er/._b.PNG", "__MACOSX/a.jpg", "deep/__MACOSX/._a.jpg", ".DS_Store", "._.DS_Store",
    ".AppleDouble/a.jpg",
    ".Spotlight-V100/Store-V2/x.png", ".fseventsd/0", ".Trashes/501/a.jpg", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
    "deep/@eaDir/a.jpg@SynoEAStream", "#recycle/a.jpg", "@Recycle/a.jpg", ".@__thumb/s800a.jpg", ".Trash-1000/files/a.jpg",
    ".thumbnails/normal/x.png", "deep/.thumbnails/1.jpg", "lost+found/#123.jpg", "$RECYCLE.BIN/S-1-5-21/$R1.jpg",
    "$Recycle.Bin/$I1.jpg", "System Volume Information/x.jpg", "Thumbs.db", "deep/thumbs.db", "desktop.ini",
    ".trashed-1700000000-IMG.jpg", ".pending-1-IMG.jpg", ".stversions/a~2.jpg", ".dtrash/files/a.jpg",
    "#recycle/old.tar", "__MACOSX/._s.tar", ".ipynb_checkpoints/a-checkpoint.png", "#snapshot/day/a.jpg", ".git/a.png",
]  # fmt: skip
USER_FILES = [
    "a.jpg", ".hidden.jpg", ".private/a.jpg", "_best/a.jpg", "Trash/a.jpg", "recycled/a.jpg", "thumbnails/a.jpg",
    "my.__MACOSX.d/a.jpg", "eaDir/a.jpg", "lost+found.jpg", "#1/a.jpg", "@home/a.jpg",
]  # fmt: skip


def folders_of(names: list[str]) -> list[str]:
    """Return the names with each system folder in place of the files in it."""
    parents = {
        name: next(filter(SYSTEM_FOLDERS.__contains__, accumulate(name.split("/"), "{}/{}".format)), name) for name in names
    }
    return sorted(set(parents.values()))


def count_images(listed_images: list[ListedImage | str]) -> tuple[set[str], int]:
    return {image.rel_path for image in listed_images if isinstance(image, ListedImage)}, listed_images.count("excluded")


def test_system_files_are_excluded_in_folders(tmp_path):
    for name in [*SYSTEM_FILES, *USER_FILES]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    assert count_images(listed(tmp_path)) == (set(USER_FILES), len(folders_of(SYSTEM_FILES)))


def test_system_files_are_excluded_in_a_bucket(moto_bucket):
    bucket = Store(f"{moto_bucket}/photos")
    for name in [*SYSTEM_FILES, *USER_FILES]:
        bucket.write(name, b"1")
    listed_images = list(list_images(open_input(bucket.url, StorageConfig(), SourceConfig())))
    in_deeper_folders = [name for name in SYSTEM_FILES if name.startswith("deep/")]
    others = folders_of([name for name in SYSTEM_FILES if name not in in_deeper_folders])
    assert count_images(listed_images) == (set(USER_FILES), len(in_deeper_folders) + len(others))


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz"])
def test_system_files_are_excluded_in_shards(tmp_path, name):
    """macOS packs `._a.jpg` next to a.jpg; it is neither a caption nor an image."""
    shard(tmp_path / name, dict.fromkeys([*SYSTEM_FILES, *USER_FILES, "./._c.json"], b"1"), f"w:{name[6:]}")
    listed_images, excluded_count = count_images(listed(tmp_path))
    assert (listed_images, excluded_count) == ({f"{name}/{own}" for own in USER_FILES}, len(SYSTEM_FILES) + 1)


def test_system_files_named_by_a_manifest_are_read(tmp_path, crops):
    """Files in a trash folder, in a shard or in a manifest are read if the input names them."""
    trash = tmp_path / ".Trash-1000"
    shard(trash / "._s.tar", {"a.png": pictures(crops, 1)[0]})
    (trash / "._a.png").write_bytes(b"1")
    (trash / "b.png").write_bytes(b"1")
    (trash / "list.csv").write_text("path\n._a.png\n")
    pq.write_table(pa.table({"image": pictures(crops, 1), "key": ["._a.png"]}), trash / "in.parquet")
    assert count_images(listed(trash)) == ({"b.png", "in.parquet/._a.png"}, 2)
    assert count_images(listed(trash / "._s.tar")) == ({"._s.tar/a.png"}, 0)
    assert count_images(listed(trash / "list.csv")) == ({"._a.png"}, 0)


def test_excluded_folder_may_be_unreadable(user):
    """lost+found and trash folders belong to root or other users."""
    (user / "a.jpg").write_bytes(b"1")
    (user / "lost+found").mkdir(mode=0o000)
    assert count_images(listed(user)) == ({"a.jpg"}, 1)


def test_links_in_excluded_folders_are_not_followed(tmp_path):
    (tmp_path / "album").mkdir()
    (tmp_path / "album/a.jpg").write_bytes(b"1")
    (tmp_path / "in/.Trash-1000").mkdir(parents=True)
    (tmp_path / "in/.Trash-1000/gone").symlink_to(tmp_path / "album")
    (tmp_path / "in/album").symlink_to(tmp_path / "album")
    assert count_images(listed(tmp_path / "in")) == ({"album/a.jpg"}, 1)


def test_run_counts_excluded_files(tmp_path, crops, capsys):
    photo = pictures(crops, 1)[0]
    for name in ("a.png", "._a.png", "@eaDir/a.png/THUMB.png", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(photo)
    config = RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(tmp_path / "out"))
    run_and_show(config)
    assert "1 image, 3 other files (txt 1, excluded 2)" in capsys.readouterr().out
    record = run(config)
    assert (record["found"], record["done_before"], record["ignored"]) == (1, 1, 3)
    assert record["ignored_by_kind"] == {"excluded": 2, "txt": 1}
