"""Runs over HEIC, JPEG XL and camera raw: the formats that need optional libraries."""

from pathlib import Path

import imagecodecs
import pylibjxl

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.images.encode import choose_output_format
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.camera_raw import dng_file
from tests.support.heifs import heif_file, picture, quadrants
from tests.support.icc import DISPLAY_P3, rgb_profile
from tests.support.image_files import open_image
from tests.support.shards import rows, shard

PHOTO = quadrants(64, 96)


def test_run_reads_optional_formats(tmp_path: Path, engine: str) -> None:
    """Files and members of shards are found by their names and read by their content."""
    source, output = tmp_path / "in", tmp_path / "out"
    wide = pylibjxl.encode(PHOTO, lossless=True, icc=rgb_profile(DISPLAY_P3))
    shard(source / "phone.tar", {"a.HEIC": heif_file(picture()), "b.ARW": dng_file(PHOTO / 255), "c": heif_file(picture())})
    (source / "exported.jpg").write_bytes(heif_file(picture("deep")))
    (source / "web.jxl").write_bytes(imagecodecs.jpegxl_encode(PHOTO, lossless=True))
    (source / "wide.jxl").write_bytes(wide)
    record = run(RunConfig(task="denoise", input=str(source), output=str(output), engine=engine))
    assert (record["planned"], record["ok"], record["ignored"]) == (6, 6, 0)
    formats = {name: open_image((output / row["output_uri"]).read_bytes()).format for name, row in rows(output).items()}
    assert formats == {
        "phone.tar/a.HEIC": "JPEG",
        "phone.tar/b.ARW": "JPEG",
        "phone.tar/c": "JPEG",
        "exported.jpg": "JPEG",
        "web.jxl": "PNG",
        "wide.jxl": "PNG",
    }
    assert rows(output)["exported.jpg"]["output_uri"] == "images/exported.jpg.jpeg"
    assert verify(Store(str(output))).problems == []


def test_output_format_of_optional_formats() -> None:
    """Formats that cannot be written become JPEG, or PNG where JPEG would lose something."""
    assert [choose_output_format(f) for f in ("HEIC", "RAW", "JPEGXL")] == ["JPEG", "JPEG", "PNG"]
    assert [choose_output_format(f, exact=True) for f in ("HEIC", "RAW", "JPEGXL")] == ["PNG"] * 3
    assert choose_output_format("HEIC", has_alpha=True) == "PNG"
    assert choose_output_format("BMP", has_profile=True) == "PNG"
    assert choose_output_format("HEIC", has_profile=True) == "JPEG"
    assert choose_output_format("HEIC", requested_format="webp") == "WEBP"
