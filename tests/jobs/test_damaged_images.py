"""Damaged images become rejects, or rows with damaged=true if accepted; skipped frames are counted."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagemill.pipeline.schema import SOURCE
from tests.support.folders import rows
from tests.support.sample_images import encode_as

EOI = b"\xff\xd9"


@pytest.fixture
def album(tmp_path: Path, crops: list[np.ndarray]) -> Path:
    """Write two damaged JPEGs, an intact JPEG and PNG, an animation of three frames, and a text file."""
    folder = tmp_path / "album"
    folder.mkdir()
    jpeg = encode_as(Image.fromarray(crops[0]), "JPEG", quality=90)
    frames = [Image.fromarray(crop).quantize(16) for crop in crops[1:4]]
    files = {
        "whole.jpg": jpeg,
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "cut_with_end_mark.jpg": jpeg[: len(jpeg) // 2] + EOI,
        "whole.png": encode_as(Image.fromarray(crops[4]), "PNG"),
        "animation.gif": encode_as(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "text.jpg": b"text",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def last_record(output: Path) -> dict:
    # The ids of two runs in one second have no order.
    return json.loads(max(output.glob("runs/*/run.json"), key=lambda path: path.stat().st_mtime_ns).read_text())


def newest(output: Path) -> dict[str, bool]:
    return {row["rel_path"]: row["damaged"] for row in rows(output)}


def test_accept_damaged_processes_damaged_images(imagemill, tmp_path, album):
    """The flag is not part of the version: adding it processes only damaged images, removing it changes nothing."""
    output = tmp_path / "out"
    code, out, _ = imagemill("denoise", album, output, "--set", "max_reject_fraction=1")
    assert code == 0
    assert "DamagedImage 2" in out
    assert newest(output) == dict.fromkeys(("whole.jpg", "whole.png", "animation.gif"), False)
    reasons = imagemill("failures", output, "--by-reason")[1]
    assert "--accept-damaged or new file" in reasons
    for part in (output / "rejects").glob("*.parquet"):
        errors = pq.read_table(part).filter(pc.field("error_class") == "DamagedImage")["error"].to_pylist()
        assert all("Restore the file. Or keep the image as it is with --accept-damaged." in error for error in errors)
    mtimes_ns = {path: path.stat().st_mtime_ns for path in (output / "images").iterdir()}

    flag = ("--accept-damaged", "--set", "max_reject_fraction=1")
    place = ("--task", "denoise", "--input", album, "--output", output)
    assert "2 images" in imagemill("plan", *place, "--accept-damaged")[1].partition("planned")[2].splitlines()[0]
    code, out, _ = imagemill("denoise", album, output, *flag)
    assert code == 0
    assert "2 (2 of them damaged)" in out
    assert newest(output) == {"cut.jpg": True, "cut_with_end_mark.jpg": True, "whole.jpg": False, "whole.png": False} | {
        "animation.gif": False
    }
    assert mtimes_ns.items() <= {path: path.stat().st_mtime_ns for path in (output / "images").iterdir()}.items()
    assert (last_record(output)["planned"], last_record(output)["damaged"]) == (2, 2)

    for arguments in ((), flag):
        assert imagemill("denoise", album, output, *arguments)[0] == 0
        assert (last_record(output)["planned"], last_record(output)["rejects_waiting"]) == (0, 1)
    assert imagemill("verify", output)[0] == 0


def test_frames_left_out_are_reported(imagemill, tmp_path, album):
    """The run summary, run.json and the report state the number of skipped frames."""
    output = tmp_path / "out"
    code, out, _ = imagemill("denoise", album, output, "--set", "max_reject_fraction=1")
    assert code == 0
    assert "2 frames after the first of their files" in out
    assert last_record(output)["frames_left_out"] == 2
    report = next(output.glob("runs/*/report.html")).read_text()
    assert "<b>2</b><span>frames skipped</span>" in report


def test_parts_without_the_column_damaged_are_read(imagemill, tmp_path, album, crops, monkeypatch):
    """Parts that older versions wrote have no column `damaged`."""
    assert "damaged" in dict(SOURCE)
    output = tmp_path / "out"
    for name in ("cut.jpg", "cut_with_end_mark.jpg", "text.jpg"):
        (album / name).unlink()
    assert imagemill("compress", album, output)[0] == 0
    for part in (output / "results").glob("*.parquet"):
        pq.write_table(pq.read_table(part).drop_columns(["damaged"]), part)
    Image.fromarray(crops[5]).save(album / "new.png")
    assert imagemill("compress", album, output)[0] == 0
    assert {row["rel_path"]: row.get("damaged") for row in rows(output)}["new.png"] is False
    monkeypatch.chdir(tmp_path)
    for command in (
        ("status", output),
        ("verify", output),
        ("failures", output),
        ("report", output),
        ("decode", output, tmp_path / "decoded", "--where", "damaged is null"),
        ("export", output, tmp_path / "exported"),
        ("stats", output),
        ("search", output, "--id", "new.png"),
        ("duplicates", output),
        ("plan", "--task", "compress", "--input", album, "--output", output),
    ):
        code, out, err = imagemill(*command)
        assert code == 0, (command, out, err, sys.stderr)
    assert len(list((tmp_path / "decoded").rglob("*.png"))) == 3
