"""Text manifests: values stay text, quotes lose no rows, and errors name the line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.sources.source import ListedImage, SourceConfig
from tests.support.shards import images, listed, pictures, rows

VALUES = [
    "00501",
    "1e5",
    "1.10",
    "2026-01-02",
    "2026-01-02T03:04:05Z",
    "NaN",
    "true",
    "null",
    "",
    "9" * 30,
    " x ",
    '5" pipe',
]


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def quote(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'


def read_codes(path: Path) -> list[str]:
    listed_images = [image for image in listed(path, carry=["code"]) if isinstance(image, ListedImage)]
    assert not any(image.problem for image in listed_images)
    return [json.loads(image.extra or "")["code"] for image in listed_images]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"1")
    return tmp_path


@pytest.mark.parametrize("name", ["list.csv", "list.tsv", "list.jsonl", "list.parquet"])
def test_manifest_text_is_never_retyped(folder, name):
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"path": ["a.png"] * len(VALUES), "code": VALUES}), folder / name)
    elif name.endswith(".jsonl"):
        put(folder / name, "".join(json.dumps({"path": "a.png", "code": value}) + "\n" for value in VALUES))
    else:
        separator = "\t" if name.endswith(".tsv") else ","
        put(
            folder / name,
            "".join(f"{separator.join(row)}\n" for row in [("path", "code"), *(("a.png", quote(v)) for v in VALUES)]),
        )
    assert read_codes(folder / name) == VALUES


def test_manifest_numbers_of_json_lines_are_kept(folder):
    labels = ["1e5", "1.10", "123456789012345678901234567890", "[1.0, null]", '{"a": true}', '"x"']
    put(folder / "list.jsonl", "".join(f'{{"path": "a.png", "label": {value}}}\n' for value in labels))
    listed_images = [image for image in listed(folder / "list.jsonl", carry=["label"]) if isinstance(image, ListedImage)]
    assert [image.extra for image in listed_images] == [f'{{"label": {value}}}' for value in labels]


def test_manifest_ignores_unused_columns(folder):
    """Values of several types, an integer of 5,000 digits, and columns missing in some rows."""
    lines = ['{"path": "a.png", "label": 7}', '{"path": "b.png", "label": "cat"}', f'{{"path": "a.png", "n": {"9" * 5000}}}']
    put(folder / "list.jsonl", "\n".join(lines))
    assert [image.path for image in listed(folder / "list.jsonl")] == ["a.png", "b.png", "a.png"]
    invalid_utf8 = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")]
    )
    pq.write_table(pa.table({"path": ["a.png"], "note": invalid_utf8}), folder / "list.parquet")
    assert [image.problem for image in listed(folder / "list.parquet")] == [None]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "marked"])
def test_manifest_ignores_line_ends_and_byte_order_mark(folder, line_end, mark):
    put(folder / "list.csv", f"{mark}path,code{line_end}a.png,1{line_end}{line_end}b.png,2{line_end}")
    assert read_codes(folder / "list.csv") == ["1", "2"]
    if line_end != "\r":
        put(
            folder / "list.jsonl",
            f'{mark}{{"path": "a.png", "code": "1"}}{line_end}  {line_end}{{"path": "b.png", "code": "2"}}{line_end}',
        )
        assert read_codes(folder / "list.jsonl") == ["1", "2"]
    put(folder / "list.tsv", f"path\tcode{line_end}a.png\t1{line_end}b.png\t2{line_end}".encode("utf-16"))
    assert read_codes(folder / "list.tsv") == ["1", "2"]


def test_manifest_captions_may_have_several_lines(folder):
    """Above 1 MB, a reader that works in blocks cuts rows at line ends within quotes."""
    captions = [f'first line of {n}: {"word " * 20}\nsecond line, "{n}"' for n in range(10_000)]
    put(folder / "list.csv", "path,code\n" + "".join(f"a.png,{quote(caption)}\n" for caption in captions))
    assert read_codes(folder / "list.csv") == captions
    config = RunConfig(task="denoise", input=str(folder / "list.csv"), output=str(folder / "out"))
    plan = build_plan(resolve(config))
    assert plan.found == len(set(plan.todo["image_id"].to_pylist())) == 10_000
    # 10,000 rows have the same name: the first becomes an image, each later one a reject that reports the duplicate.
    assert plan.todo["problem"].null_count == 1
    huge = "x" * 3_000_000
    put(folder / "list.csv", f"path,code\na.png,{huge}\nb.png,\n")
    assert read_codes(folder / "list.csv") == [huge, ""]


def test_manifest_rows_become_rows_or_rejects(tmp_path, crops):
    put(tmp_path / "a.png", pictures(crops, 1)[0])
    text = "path,code\n" + 'a.png,"one\ntwo"\n' * 3 + '"",00501\nb.png,1e5\n'
    put(tmp_path / "list.csv", text)
    source = SourceConfig(carry=["code"])
    output = tmp_path / "out"
    config = RunConfig(
        task="denoise", input=str(tmp_path / "list.csv"), output=str(output), source=source, max_reject_fraction=1
    )
    record = run(config)
    assert (record["found"], record["ok"]) == (5, 1)
    assert record["reasons"] == {"DuplicateName": 2, "BadName": 1, "FileNotFound": 1}
    assert json.loads(rows(output)["a.png"]["extra"]) == {"code": "one\ntwo"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "path,code\na.png,1\nb.png,2,3\n", "line 3: 3 values for 2 columns"),
        ("list.csv", 'path,code\na.png,"1\nb.png,2\n', "a quote is opened and never closed"),
        ("list.csv", 'path,code\na.png,"5" pipe\n', "line 2: ',' expected after"),
        ("list.csv", "path,code\na.png,café\n".encode("latin-1"), "not valid UTF-8"),
        ("list.csv", "", "The first line must contain the names of the columns"),
        ("list.csv", "path,path\na.png,b.png\n", "several columns are called path"),
        ("list.jsonl", '{"path": "a.png"}\n{"path": \n', "line 2: Expecting value"),
        ("list.jsonl", '["a.png"]\n', "line 1: an object is expected"),
        ("list.jsonl", '{"colour": "red"}\n', "no column of paths or URLs among colour"),
    ],
)
def test_manifest_error_names_the_line(folder, name, text, message):
    with pytest.raises(ConfigError, match=message):
        listed(put(folder / name, text))


def test_manifest_without_rows_is_an_empty_input(folder):
    for name, text in (("list.csv", "path,code\n"), ("list.tsv", "path\tcode"), ("list.jsonl", "\n")):
        assert listed(put(folder / name, text)) == []


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.dictionary(pa.int32(), pa.binary()), pa.list_(pa.string()), pa.int64()], ids=str
)
def test_manifest_bytes_are_not_file_names(folder, kind):
    """A column is named like a path column but contains other values."""
    value = {pa.int64(): 7, pa.list_(pa.string()): ["a.png"]}.get(kind, b"\x89PNG")
    table = pa.table({"path": pa.array([value], kind.value_type if pa.types.is_dictionary(kind) else kind)})
    if pa.types.is_dictionary(kind):
        table = pa.table({"path": table["path"].combine_chunks().dictionary_encode()})
    pq.write_table(table, folder / "list.parquet")
    with pytest.raises(ConfigError, match=r"path \(.*a column of paths or URLs must be text"):
        listed(folder / "list.parquet", uri="path")


def test_manifest_value_that_is_no_path_is_a_reject(folder):
    texts = pa.array(["a.png", "data:image/png;base64," + "A" * 20_000], pa.large_string())
    pq.write_table(pa.table({"image": texts.dictionary_encode()}), folder / "list.parquet")
    put(folder / "list.jsonl", '{"path": 7}\n{"path": ["a.png"]}\n{"path": null}\n')
    listed_images = images(folder / "list.parquet")
    assert [(image.problem or "").partition(":")[0] for image in listed_images.values()] == ["", "BadName"]
    assert max(map(len, listed_images)) < 100
    assert [image.problem.partition(":")[0] for image in images(folder / "list.jsonl").values()] == ["BadName"] * 3
