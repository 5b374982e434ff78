"""`source.include` and `source.exclude` select images of folders, buckets, shards and manifests."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from imagemill.jobs.removed import list_sources
from imagemill.pipeline.config import RunConfig, validate
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.rejects import read_waiting_rejects
from imagemill.pipeline.run import run
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.source import ListedImage, SourceConfig
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.shards import images, listed, pictures, shard

NAMES = ["a.jpg", "B.PNG", "2026/a.png", "2026/05/b.jpg", "#old/a.jpg", "drafts/x/a.png", "2025/drafts/b.png", "c [1].jpg"]
SELECTIONS: list[tuple[dict[str, list[str]], set[str]]] = [
    ({"include": ["*.JPG"]}, {"a.jpg", "2026/05/b.jpg", "#old/a.jpg", "c [1].jpg"}),
    ({"include": ["2026"]}, {"2026/a.png", "2026/05/b.jpg"}),
    ({"include": ["2026/*.png"]}, {"2026/a.png"}),
    ({"include": ["2026/**/b.*", "./B.png"]}, {"2026/05/b.jpg", "B.PNG"}),
    ({"include": ["/a.*"]}, {"a.jpg"}),
    ({"include": ["a.png/"]}, set()),
    ({"exclude": ["Drafts/", "#old"]}, {"a.jpg", "B.PNG", "2026/a.png", "2026/05/b.jpg", "c [1].jpg"}),
    ({"exclude": ["drafts/x", "[ab].jpg", "c \\[?].jpg"]}, {"B.PNG", "2026/a.png", "2025/drafts/b.png"}),
    ({"include": ["20*/"], "exclude": ["/*/drafts", "05"]}, {"2026/a.png"}),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"1")
    (tmp_path / "in/notes.txt").touch()
    return tmp_path / "in"


def list_bucket(url: str, **config: Any) -> list[ListedImage | str]:
    return list(list_images(open_input(url, StorageConfig(), SourceConfig(**config))))


def test_patterns_select_images_in_every_kind_of_input(folder, moto_bucket, tmp_path):
    """A shard counts as a folder, and the rows of a manifest as files."""
    bucket = Store(f"{moto_bucket}/photos")
    for name in NAMES:
        bucket.write(name, b"1")
    shard(tmp_path / "shards/s.tar", dict.fromkeys(NAMES, b"1"))
    (folder / "list.csv").write_text("path\n" + "\n".join(NAMES))
    for config, names in SELECTIONS:
        assert set(images(folder, **config)) == names, config
        assert {i.rel_path for i in list_bucket(bucket.url, **config) if isinstance(i, ListedImage)} == names, config
        assert set(images(folder / "list.csv", **config)) == names, config
        in_shards = {
            key: [f"s.tar/{p.removeprefix('./')}" if "/" in p[:-1] else p for p in ps] for key, ps in config.items()
        }
        in_shards = {key: [pattern.replace("//", "/") for pattern in patterns] for key, patterns in in_shards.items()}
        assert set(images(tmp_path / "shards", **in_shards)) == {f"s.tar/{name}" for name in names}, config


def test_excluded_folders_and_shards_are_not_read(folder, moto_bucket, caplog):
    (folder / "broken.tar").write_bytes(b"not a tar")
    (folder / "drafts/deep.tar").write_bytes(b"not a tar")
    for config in ({"exclude": ["drafts/", "*.tar"]}, {"include": ["/a.jpg", "2026/*"]}):
        listed_entries = listed(folder, **config)
        assert not [entry for entry in listed_entries if isinstance(entry, ListedImage) and entry.problem]
    kinds = Counter(entry for entry in listed(folder, exclude=["drafts/", "*.tar"]) if isinstance(entry, str))
    assert kinds == {"txt": 1, "excluded": 3}
    # A damaged shard may hold images that a pattern selects, so its reject stays.
    assert [image.rel_path for image in images(folder, include=["/broken.tar/*.jpg"]).values()] == ["broken.tar"]

    bucket = Store(f"{moto_bucket}/photos")
    for name in NAMES:
        bucket.write(name, b"1")
    for config in ({"exclude": ["drafts/"]}, {"include": ["2026/*.png"]}):
        caplog.clear()
        assert "excluded" in list_bucket(bucket.url, **config)
        assert "prefix=photos/drafts/" not in caplog.text
        assert "prefix=photos/2026/" in caplog.text


def test_changed_patterns_keep_the_index_of_a_shard(tmp_path):
    """A shard is not read again for other patterns, and an index of older versions of imagemill stays valid."""
    shard(tmp_path / "in/s.tar", {"a.png": b"1", "b.png": b"2"})
    output = Store(str(tmp_path / "out"))
    list(list_images(open_input(str(tmp_path / "in"), StorageConfig(), SourceConfig()), output, store_indexes=True))
    identity = '{"image":null,"key":null,"uri":null,"carry":null,"roots":[],"http":"refuse"}'
    assert SourceConfig(include=["a.*"]).reading == identity
    status = (tmp_path / "in/s.tar").stat()
    (tmp_path / "in/s.tar").write_bytes(b"x" * status.st_size)
    os.utime(tmp_path / "in/s.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    source = open_input(str(tmp_path / "in"), StorageConfig(), SourceConfig(include=["a.*"]))
    entries = list(list_images(source, output))
    assert [entry if isinstance(entry, str) else entry.rel_path for entry in entries] == ["s.tar/a.png", "excluded"]


def test_masks_belong_to_selected_images(tmp_path):
    for name in ("a.png", "a.mask.png", "b.png", "b.mask.png"):
        (tmp_path / name).write_bytes(b"1")
    source = open_input(str(tmp_path), StorageConfig(), SourceConfig(include=["a.png"], exclude=["*.mask.png"]))
    [image] = [entry for entry in list_images(source, masks=True) if isinstance(entry, ListedImage)]
    assert (image.rel_path, image.mask_path) == ("a.png", "a.mask.png")


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("", "matches nothing"),
        ("/", "matches nothing"),
        ("!keep/", "starts with !"),
        ("[z-a].jpg", "not a valid pattern"),
        ("a\\", "not a valid pattern"),
        ("s3://photos/*.jpg", "relative to the input"),
    ],
)
def test_invalid_patterns_are_named(pattern, problem):
    values = {"task": "denoise", "source": {"exclude": ["*.png", pattern]}}
    with pytest.raises(ConfigError, match=rf"^job\.yaml: source\.exclude = \[.*\]: .* {problem}[^\n]*$"):
        validate(RunConfig, values, "job.yaml")


def test_filtered_images_are_neither_removed_nor_departed(tmp_path, crops, caplog):
    """Another run may read the images, so nothing is said about them."""
    source, output = tmp_path / "in", Store(str(tmp_path / "out"))
    source.mkdir()
    good, other = pictures(crops, 2)
    for name, data in {
        "good.png": good,
        "bad.png": b"no image",
        "drafts/good.png": other,
        "drafts/bad.png": b"none",
    }.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_bytes(data)
    config = RunConfig(task="denoise", input=str(source), output=output.url, max_reject_fraction=1)
    assert run(config)["rejected"] == 2
    without = config.model_copy(update={"source": SourceConfig(exclude=["drafts/"])})
    record = run(without)
    assert (record["found"], record["planned"], record["ignored_by_kind"]) == (2, 0, {"excluded": 1})

    def waiting() -> set[str]:
        return set(read_waiting_rejects(output, ["rel_path"])["rel_path"].to_pylist())

    assert waiting() == {"bad.png", "drafts/bad.png"}
    sources = list_sources(output)
    assert (len(sources.ids), sources.problems) == (4, [])
    # A reject whose image left the input stays departed while a pattern hides its folder.
    (source / "drafts/bad.png").unlink()
    (source / "bad.png").unlink()
    run(config)
    assert waiting() == set()
    run(without)
    assert waiting() == set()
    nothing = config.model_copy(update={"source": SourceConfig(include=["*.heic"])})
    problem = "source.include and source.exclude leave no image (excluded: 2, other files: 0). Check the patterns"
    assert run(nothing)["doubt"] == f"{source}: {problem}: they match paths below the input"
