"""Columns of Parquet shards: image types, name columns and carried columns."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.plan import build_references
from imagemill.pipeline.run import run
from imagemill.pipeline.sources.image_reader import ImageReader
from imagemill.pipeline.sources.input import list_images, open_input
from imagemill.pipeline.sources.parquet import BATCH_ROWS
from imagemill.pipeline.sources.source import SourceConfig
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from tests.support.shards import images, listed, pictures, rows

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SINGLE = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary()), STRUCT]
LISTS = [pa.list_(pa.binary()), pa.large_list(pa.large_binary()), pa.list_(pa.binary_view()), pa.list_(STRUCT)]


def column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return pa.array(values, kind.value_type).dictionary_encode()
    return pa.array(values, kind)


@pytest.mark.parametrize("name", ["image", "picture"])
@pytest.mark.parametrize("kind", SINGLE, ids=str)
def test_parquet_image_columns_of_any_type_are_read(tmp_path, crops, kind, name):
    photos = pictures(crops, 4)
    as_rows = [{"bytes": photo, "path": "x.png"} for photo in photos] if kind == STRUCT else photos
    table = pa.table({name: column([*as_rows, None], kind), "caption": list("vwxyz")})
    pq.write_table(table, tmp_path / "in.parquet")
    source = open_input(str(tmp_path / "in.parquet"), StorageConfig(), SourceConfig(carry=["caption"]))
    todo = build_references(list_images(source), source.store, "", {})[0].to_pylist()
    assert [row["rel_path"] for row in todo] == [f"in.parquet/row-{n:09d}" for n in range(5)]
    assert [json.loads(row["extra"])["caption"] for row in todo] == list("vwxyz")
    reading = ImageReader(source, 1)
    for order in (todo, todo[::-1]):
        assert {row["rel_path"]: reading.image(row) for row in order} == {
            row["rel_path"]: photo for row, photo in zip(todo, [*photos, b""], strict=True)
        }


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_parquet_list_column_yields_each_image(tmp_path, crops, kind):
    photos = pictures(crops, 5)
    lists = [photos[:n] for n in (2, 0, 5, 1)] * BATCH_ROWS
    as_rows = [[{"bytes": photo, "path": None} for photo in row] for row in lists] if kind.value_type == STRUCT else lists
    keys = [f"p{n}" for n in range(len(lists) + 1)]
    table = pa.table({"views": pa.array([*as_rows, None], kind), "id": keys, "label": range(len(keys))})
    if "view" not in str(kind):
        pq.write_table(table, tmp_path / "in.parquet", row_group_size=7)
    else:
        pq.write_table(table, tmp_path / "in.parquet")
    source = open_input(str(tmp_path), StorageConfig(), SourceConfig(carry=["label"]))
    todo = build_references(list_images(source), source.store, "", {})[0].to_pylist()
    expected = {f"in.parquet/p{n}/{at}": photo for n, row in enumerate(lists) for at, photo in enumerate(row)}
    assert [row["rel_path"] for row in todo] == list(expected)
    assert all(json.loads(row["extra"])["label"] == int(row["rel_path"].split("/")[1][1:]) for row in todo)
    reading = ImageReader(source, 1)
    for row in [*todo, *todo[::-7]]:
        assert reading.image(row) == expected[row["rel_path"]]


def test_parquet_lists_and_views_become_rows(tmp_path, crops):
    photos = pictures(crops, 3)
    (tmp_path / "in").mkdir()
    lists = [
        [{"bytes": photos[0], "path": "a"}, None],
        [{"bytes": photos[1], "path": "b"}],
        [{"bytes": None, "path": "c.png"}],
    ]
    pq.write_table(pa.table({"images": pa.array(lists, pa.list_(STRUCT))}), tmp_path / "in/lists.parquet")
    pq.write_table(pa.table({"image": pa.array(photos, pa.binary_view())}), tmp_path / "in/views.parquet")
    output = tmp_path / "out"
    record = run(RunConfig(task="denoise", input=str(tmp_path / "in"), output=str(output)))
    assert (record["ok"], record["reasons"]) == (5, {"EmptyFile": 1, "NoBytes": 1})
    rejected = rows(output, "rejects")
    assert "the path c.png" in rejected["lists.parquet/row-000000002/0"]["error"]
    assert set(rejected) == {"lists.parquet/row-000000002/0", "lists.parquet/row-000000000/1"}
    assert verify(Store(str(output))).problems == []


@pytest.mark.parametrize(
    ("name", "kind", "nest"),
    [
        ("images", pa.list_(pa.list_(pa.binary())), lambda data: [[data]]),
        ("sample", pa.struct([("image", STRUCT)]), lambda data: {"image": {"bytes": data, "path": None}}),
        ("views", pa.map_(pa.string(), pa.binary()), lambda data: [("left", data)]),
        ("frames", pa.list_(pa.dictionary(pa.int32(), pa.binary())), lambda data: [data]),
    ],
    ids=["list of lists", "struct in a struct", "map", "list of a dictionary"],
)
def test_parquet_unreadable_column_is_named_with_its_type(tmp_path, crops, name, kind, nest):
    photos = pictures(crops, 3)
    values = [nest(photo) for photo in photos]
    if name == "frames":
        array = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), pa.array(photos).dictionary_encode())
    else:
        array = pa.array(values, kind)
    pq.write_table(pa.table({"path": ["a.png"] * 3, name: array}), tmp_path / "in.parquet", row_group_size=2)
    for place in (tmp_path, tmp_path / "in.parquet"):
        [(path, image)] = images(place).items()
        assert path == "in.parquet"
        assert image.problem.startswith("UnreadColumn: ")
        assert f"{name} ({str(kind)[:4]}" in image.problem
    # With the manifest option, the file is read as a manifest.
    assert {image.path for image in images(tmp_path / "in.parquet", uri="path").values()} == {"a.png"}


def test_parquet_image_column_is_detected_or_requested(tmp_path, crops):
    photo, other_photo = pictures(crops, 2)
    pq.write_table(pa.table({"digest": [b"\1\2"], "scan": [photo]}), tmp_path / "one.parquet")
    pq.write_table(pa.table({"left": [photo], "right": [other_photo]}), tmp_path / "two.parquet")
    pq.write_table(pa.table({"md5": pa.array([bytes(16)], pa.binary(16)), "n": [1]}), tmp_path / "none.parquet")
    listed_images = listed(tmp_path)
    assert listed_images[0] == "parquet"
    assert (listed_images[1].rel_path, listed_images[1].problem) == ("one.parquet/row-000000000", None)
    assert (
        listed_images[2].problem
        == "UnreadColumn: left (binary), right (binary): all of them hold images. Name one in source.image"
    )
    assert [image.size for image in images(tmp_path / "two.parquet", image="right").values()] == [len(other_photo)]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"image": "caption"},
            r"source.image = 'caption': in.parquet: caption \(string\) is not a column of images; valid: image",
        ),
        ({"key": "thumb"}, r"source.key = 'thumb': in.parquet: thumb \(binary\) cannot name images"),
        ({"key": "tags"}, r"source.key = 'tags': in.parquet: tags \(list<element: string>\) cannot name images"),
        (
            {"carry": ["thumb", "image"]},
            r"source.carry = \['thumb', 'image'\]: in.parquet: JSON cannot store thumb \(binary\), image",
        ),
        ({"carry": ["no"]}, r"source.carry = \['no'\]; the columns of in.parquet: image"),
    ],
)
def test_parquet_column_of_the_wrong_type_is_refused(tmp_path, crops, config, message):
    table = pa.table({"image": pictures(crops, 1), "caption": ["x"], "thumb": [b"x"], "tags": [["x"]]})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(ConfigError, match=message):
        listed(tmp_path, **config)


def test_parquet_carried_values_keep_their_type(tmp_path, crops):
    values = {
        "zip": (["00501"], "00501"),
        "code": (pa.array(["1e5"], pa.large_string()), "1e5"),
        "view": (pa.array(["NaN"], pa.string_view()), "NaN"),
        "kind": (pa.array(["true"]).dictionary_encode(), "true"),
        "large": (pa.array([2**64 - 1], pa.uint64()), 2**64 - 1),
        "share": ([0.1], 0.1),
        "none": (pa.array([None], pa.string()), None),
        "not": ([float("nan")], "NaN"),
        "flag": ([True], True),
        "price": (pa.array(["1.50"]).cast(pa.decimal128(5, 2)), "1.50"),
        "day": (pa.array(["2026-01-02"]).cast(pa.date32()), "2026-01-02"),
        "boxes": ([[[1, 2], [3, 4]]], [[1, 2], [3, 4]]),
    }
    table = pa.table({"image": pictures(crops, 1), **{name: value for name, (value, _) in values.items()}})
    pq.write_table(table, tmp_path / "in.parquet")
    [image] = images(tmp_path, carry=list(values)).values()
    # Strictly valid JSON: values without a JSON form become strings.
    extra = json.loads(image.extra, parse_constant=lambda text: pytest.fail(text))
    assert extra == {name: expected for name, (_, expected) in values.items()}
