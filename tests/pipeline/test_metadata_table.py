"""The table of docs/formats.md: which metadata survive from which format to which. And what `strip` leaves."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL.ExifTags import IFD, Base

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import DecodedImage, decode_image
from imagemill.pipeline.run import run
from tests.support.image_files import encode, open_image
from tests.support.personal_metadata import DPI, FILES, IPTC_TAG, MARKS, XMP_TAG

OUTPUT_FORMATS = ("JPEG", "PNG", "WebP", "AVIF", "TIFF", "BMP", "PPM")
KEEP = ImageConfig(icc="keep")
PAGE = Path(__file__).parents[2] / "docs" / "formats.md"


def read_table() -> dict[str, dict[str, str]]:
    """Return the cells of the table by kind of metadata and column."""
    lines = PAGE.read_text().partition("| metadata | read from |")
    table = (lines[1] + lines[2].partition("\n\n")[0]).splitlines()
    columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table)
    return {row[0].partition(" (")[0]: dict(zip(columns[1:], row[1:], strict=True)) for row in rows}


def find_kinds(decoded: DecodedImage) -> set[str]:
    """Return the kinds of metadata that were read."""
    metadata = decoded.metadata
    kinds = {"EXIF": metadata.exif, "XMP": metadata.xmp, "IPTC": metadata.iptc, "resolution": metadata.dpi}
    kinds |= {"ICC profile": decoded.profile, "comment": metadata.text.get("Comment")}
    kinds |= {"PNG text": set(metadata.text) - {"Comment"}}
    return {kind for kind, value in kinds.items() if value}


def find_written(data: bytes) -> set[str]:
    """Return the kinds of metadata that an output contains."""
    image = open_image(data)
    kinds = {kind for kind, mark in MARKS.items() if mark.encode() in data}
    # Pillow writes other resolutions where the source has none.
    resolutions = (*image.info.get("dpi", ()), image.getexif().get(Base.XResolution, 0))
    kinds |= {"resolution"} if DPI[0] in (round(float(value)) for value in resolutions) else set()
    return kinds | ({"ICC profile"} if image.info.get("icc_profile") else set())


def test_metadata_table_names_every_source() -> None:
    """A source keeps nothing that the table does not name, and everything that it names."""
    documented = {kind: set(cells["read from"].split(", ")) for kind, cells in read_table().items()}
    for source, data in FILES.items():
        expected = {kind for kind, sources in documented.items() if source in sources}
        assert find_kinds(decode_image(data, config=KEEP)) == expected, source


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_metadata_table_names_every_output(output_format: str) -> None:
    documented = read_table()
    for source, data in FILES.items():
        decoded = decode_image(data, config=KEEP)
        expected = {kind for kind in find_kinds(decoded) if documented[kind].get(output_format)}
        written = find_written(encode(decoded.rgb, decoded, output_format.upper()))
        assert written == expected, source


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_strip_leaves_nothing_personal(output_format: str) -> None:
    for source, data in FILES.items():
        decoded = decode_image(data, config=ImageConfig(metadata="strip"))
        assert find_kinds(decoded) == set(), source
        output = encode(decoded.rgb, decoded, output_format.upper())
        assert b"Ann" not in output, source
        image = open_image(output)
        assert not {"exif", "xmp", "comment", "photoshop", "icc_profile"} & image.info.keys(), source
        assert not getattr(image, "text", {}), source
        assert not {Base.Artist, IFD.Exif, IFD.GPSInfo, IPTC_TAG, XMP_TAG} & image.getexif().keys(), source


def test_run_with_strip_leaves_nothing_personal(tmp_path: Path) -> None:
    """Outputs, rows, the record and the report name nobody."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for name, data in FILES.items():
        (source / f"{name}.jpg").write_bytes(data)
    image = ImageConfig(metadata="strip")
    record = run(RunConfig(task="denoise", input=str(source), output=str(output), image=image))
    assert (record["ok"], record["rejected"]) == (len(FILES), 0)
    for path in output.rglob("*"):
        if path.is_file():
            assert b"Ann of" not in path.read_bytes(), path
        if path.suffix == ".parquet":
            assert "Ann of" not in str(pq.read_table(path).to_pylist()), path
