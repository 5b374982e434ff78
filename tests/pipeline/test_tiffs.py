"""TIFFs of programs and cameras: samples, colours, compressions and odd tags."""

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageCms

from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.readers.jpeg_structure import parse_structure
from tests.support.sample_images import noise, scene
from tests.support.tiffs import BYTE, LONG, SHORT, build_tiff, decode_error, encode_tiff, encode_with_tifffile

H, W = 24, 36

RGB, GRAY = scene(H, W), scene(H, W)[..., :1]


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_planar_equals_interleaved(bits: int) -> None:
    """16-bit planes once differed by up to 67 of 255."""
    deep_samples = RGB.astype(np.uint16) * 257 if bits == 16 else RGB
    for options in ({}, {"compression": "zstd"}, {"compression": "lzw", "predictor": True}):
        planes = encode_with_tifffile(
            np.moveaxis(deep_samples, -1, 0), photometric="rgb", planarconfig="separate", **options
        )
        np.testing.assert_array_equal(decode_image(planes).rgb, RGB)


@pytest.mark.parametrize("scale", [1, 256, 257])
def test_tiff_palette_of_8_bit_colours_is_scaled(scale: int) -> None:
    """Palette colours have 16 bits; some programs write 8, or leave the lower byte zero."""
    colours = noise(3, 256).astype(int)
    indices = noise(H, W, 1)
    expected = colours.T[indices[..., 0]]
    for kind in (SHORT, BYTE) if scale == 1 else (SHORT,):
        data = encode_tiff(indices, 8, 3, tags={320: (kind, tuple((colours * scale).ravel().tolist()))})
        decoded = decode_image(data)
        np.testing.assert_array_equal(decoded.rgb, expected)
        assert (decoded.is_gray, decoded.bit_depth) == (False, 8)
    assert decode_error(encode_tiff(indices, 8, 3, tags={320: (SHORT, (1, 2, 3))}))[0] == "BrokenImage"


@pytest.mark.parametrize("bits", [4, 8, 12, 16])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_tiff_premultiplied_colours_are_divided_by_alpha(bits: int, count: int) -> None:
    sample_max = (1 << bits) - 1
    alpha = np.random.default_rng(1).integers(0, sample_max + 1, (H, W, 1))
    stored_samples = np.random.default_rng(2).integers(0, sample_max + 1, (H, W, count)) * alpha // sample_max
    decoded = decode_image(encode_tiff(np.dstack([stored_samples, alpha]), bits, {1: 1, 3: 2, 4: 5}[count], extra=(1,)))
    is_visible = alpha[..., 0] > 0
    expected = np.divide(stored_samples * 255.0, alpha, out=np.zeros(stored_samples.shape), where=alpha > 0)
    if count == 4:
        inks = np.rint(expected).astype(np.uint8)
        expected = np.asarray(Image.frombytes("CMYK", (W, H), inks.tobytes()).convert("RGB"))
    # Samples are rounded to their own depth before they become 8 bits, and inks are multiplied by black after that.
    assert np.abs(decoded.rgb.astype(float) - expected)[is_visible].max() <= (0.51 + 127.6 / sample_max) * (
        3 if count == 4 else 1
    )
    assert decoded.alpha is not None
    np.testing.assert_array_equal(decoded.alpha, np.rint(alpha[..., 0] * 255 / sample_max))
    assert decoded.is_gray == (count == 1)


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_cmyk_with_alpha_keeps_both(bits: int) -> None:
    inks, alpha = noise(H, W, 4), noise(H, W)
    data = encode_tiff(np.dstack([inks, alpha]).astype(int) * (257 if bits == 16 else 1), bits, 5, extra=(2,))
    expected = np.asarray(Image.frombytes("CMYK", (W, H), inks.tobytes()).convert("RGB"))
    decoded = decode_image(data)
    np.testing.assert_array_equal(decoded.rgb[alpha > 0], expected[alpha > 0])
    np.testing.assert_array_equal(decoded.alpha, alpha)
    opacity = alpha[..., None] / 255
    flattened_image = decode_image(data, config=ImageConfig(alpha="#ff0000"))
    assert np.abs(flattened_image.rgb - (expected * opacity + np.array([255, 0, 0]) * (1 - opacity))).max() <= 1


@pytest.mark.parametrize("extra", [None, (0,), (1,), (2,), (0, 2), (2, 0, 0)])
def test_tiff_extra_sample_has_declared_type(extra: tuple[int, ...] | None) -> None:
    """An unspecified extra sample is not alpha; one without a declared type is."""
    count = len(extra or (2,))
    samples = np.dstack([RGB, np.full((H, W, count), 255, np.uint8)])
    samples[..., 3 + (extra or (2,)).index(2) if 2 in (extra or (2,)) else 3] = 255
    decoded = decode_image(encode_tiff(samples, 8, 2, extra=extra))
    np.testing.assert_array_equal(decoded.rgb, RGB)
    assert decoded.has_alpha == (extra != (0,))


@pytest.mark.parametrize(("column_step", "row_step"), [(1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (1, 2)])
@pytest.mark.parametrize("rows", [4, 24])
def test_tiff_uncompressed_ycbcr_is_decoded(column_step: int, row_step: int, rows: int) -> None:
    """Its units contain the luma of several pixels and one pair of chroma samples."""
    colours = np.random.default_rng(0).integers(60, 190, (24 // row_step, -(-30 // column_step), 2)).astype(np.uint8)
    luma = np.random.default_rng(1).integers(100, 150, (24, colours.shape[1] * column_step)).astype(np.uint8)
    units = luma.reshape(len(colours), row_step, colours.shape[1], column_step).swapaxes(1, 2)
    units = np.concatenate([units.reshape(*colours.shape[:2], -1), colours], -1)
    step = max(rows // row_step, 1)
    strips = [units[top : top + step].tobytes() for top in range(0, len(units), step)]
    entries = {256: (LONG, (30,)), 257: (LONG, (24,)), 258: (SHORT, (8, 8, 8)), 262: (SHORT, (6,)), 277: (SHORT, (3,))}
    data = build_tiff(entries | {278: (LONG, (step * row_step,)), 530: (SHORT, (column_step, row_step))}, strips)
    full = colours.repeat(row_step, 0).repeat(column_step, 1)[:, :30].astype(float) - 128
    y, cb, cr = luma[:, :30], full[..., 0], full[..., 1]
    expected = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1).clip(0, 255)
    assert np.abs(decode_image(data).rgb - expected).max() <= 0.6


@pytest.mark.parametrize(("kind", "bits", "tolerance"), [(8, 8, 10), (9, 8, 10), (8, 16, 1), (9, 16, 1)])
def test_tiff_lab_is_converted_to_srgb(kind: int, bits: int, tolerance: int) -> None:
    """CIELab has signed a and b; ICCLab has an offset, and another white at 16 bits."""
    # White point D50, from Lindbloom's tables.
    lab = {
        (255, 255, 255): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (255, 0, 0): (54.29, 80.81, 69.89),
        (0, 255, 0): (87.82, -79.28, 80.99),
        (0, 0, 255): (29.57, 68.29, -112.03),
        (119, 119, 119): (50.03, 0, 0),
    }
    light, a, b = np.array(list(lab.values())).T
    unit = 1 << bits - 8
    if kind == 8:
        samples = np.rint([light / 100 * ((1 << bits) - 1), a * unit, b * unit]).astype(int) % (1 << bits)
    else:
        samples = np.rint(np.array([light / 100 * 255, a + 128, b + 128]) * unit).astype(int)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    decoded = decode_image(encode_tiff(samples.T[None], bits, kind, tags={34675: (BYTE, tuple(profile))}))
    assert np.abs(decoded.rgb[0].astype(int) - np.array(list(lab))).max() <= tolerance
    assert decoded.icc == "none"


@pytest.mark.parametrize("kind", [BYTE, SHORT, LONG])
def test_tiff_orientation_of_any_integer_type_is_read(kind: int) -> None:
    decoded = decode_image(encode_tiff(RGB, 8, 2, tags={274: (kind, (6,))}))
    np.testing.assert_array_equal(decoded.rgb, np.rot90(RGB, -1))
    assert decoded.exif_orientation == 6


def test_tiff_missing_tags_get_defaults() -> None:
    """Programs omit sizes of strips, the photometric interpretation, and rows per strip."""
    for data in (
        encode_tiff(RGB, 8, None),
        encode_tiff(RGB, 8, 2, tags={278: (LONG, (2**32 - 1,))}),
        encode_tiff(RGB, 8, 2, tags={279: (LONG, (0,))}),
        encode_tiff(RGB, 8, 2, tags={258: (SHORT, (8,))}),
        b"II\0*" + encode_tiff(RGB, 8, 2)[4:],
        b"MM*\0" + encode_tiff(RGB, 8, 2, order=">")[4:],
    ):
        np.testing.assert_array_equal(decode_image(data).rgb, RGB)
    np.testing.assert_array_equal(decode_image(encode_tiff(GRAY, 8, None)).rgb[..., :1], GRAY)


@pytest.mark.parametrize(
    ("data", "error_class", "message"),
    [
        (encode_tiff(noise(9, 9, 5), 8, 1, extra=(0,) * 4), "UnsupportedFormat", "5 samples per pixel"),
        (encode_tiff(noise(9, 9, 9), 8, 2, extra=(0,) * 6), "UnsupportedFormat", "9 samples per pixel"),
        (encode_tiff(noise(9, 9, 2), 8, 2), "UnsupportedFormat", "2 samples per pixel, but RGB needs 3"),
        (encode_tiff(noise(9, 9, 1), 32, 1), "UnsupportedMode", "32-bit integer samples"),
        (encode_with_tifffile(np.zeros((9, 9), np.float32)), "UnsupportedMode", "32-bit floating-point samples"),
        (encode_with_tifffile(np.zeros((9, 9), np.float16)), "UnsupportedMode", "16-bit floating-point samples"),
        (encode_with_tifffile(np.zeros((9, 9), np.int16)), "UnsupportedMode", "16-bit signed integer samples"),
        (encode_with_tifffile(np.zeros((9, 9), np.complex64)), "UnsupportedMode", "64-bit complex samples"),
        (encode_with_tifffile(np.zeros((9, 9, 3), np.float32), photometric="rgb"), "UnsupportedMode", "floating-point"),
        (encode_tiff(noise(9, 9, 3), 8, 2, tags={258: (SHORT, (5, 6, 5))}), "UnsupportedFormat", "samples of 5, 6 bits"),
        (encode_tiff(noise(9, 9, 3), 8, 32845), "UnsupportedFormat", "LogLuv"),
        (encode_tiff(noise(9, 9, 1), 8, 4), "UnsupportedFormat", "transparency mask"),
        (encode_tiff(noise(9, 9, 4), 8, 5, tags={332: (SHORT, (2,))}), "UnsupportedFormat", "inks other than CMYK"),
        (encode_tiff(noise(9, 9, 1), 8, 1, tags={259: (SHORT, (32809,))}), "UnsupportedFormat", "ThunderScan"),
        (encode_tiff(noise(9, 9, 1), 8, 1, tags={259: (SHORT, (12345,))}), "UnsupportedFormat", "compression 12345"),
        (encode_tiff(noise(9, 9, 1), 8, 1, tags={32997: (LONG, (9,))}), "UnsupportedFormat", "a volume of 9 slices"),
        (encode_tiff(noise(9, 9, 1), 8, 77), "UnsupportedFormat", "photometric interpretation 77"),
        (encode_tiff(noise(9, 9, 3), 8, 2, rows=3, tags={279: (LONG, (81, 0, 81))}), "UnsupportedFormat", "sparse"),
        (encode_tiff(noise(9, 9, 1), 16, 32803), "UnsupportedFormat", "camera raw of this camera"),
        (
            encode_tiff(noise(9, 9, 1), 8, 1, tags={259: (SHORT, (7,)), 258: (SHORT, (12,))}),
            "UnsupportedFormat",
            "JPEG of 12-bit",
        ),
    ],
    ids=str,
)
def test_tiff_unsupported_property_is_named(data: bytes, error_class: str, message: str) -> None:
    """The reject never says that the format is unknown."""
    assert decode_error(data)[0] == error_class
    assert message in decode_error(data)[1]
    assert decode_error(data)[1].startswith(("TIFF with", "camera raw"))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("tables_form", ["tables", "strips", "stream"])
def test_tiff_old_style_jpeg_is_decoded(subsampling: int, tables_form: str) -> None:
    """Tags point at tables without markers, or at a complete JPEG in the file."""
    out = io.BytesIO()
    options = {"restart_marker_rows": 1} if tables_form == "strips" else {}
    Image.fromarray(scene(48, 64)).save(out, "JPEG", quality=95, subsampling=subsampling, **options)
    jpeg = out.getvalue()
    expected = np.asarray(Image.open(io.BytesIO(jpeg)))
    column_step, row_step = ((1, 1), (2, 1), (2, 2))[subsampling]
    structure = parse_structure(jpeg)
    quantization, huffman = {}, {}
    for segment in structure.segments:
        content = jpeg[segment.start : segment.end]
        if segment.marker == 0xDB:
            quantization[content[0]] = content[1:]
        elif segment.marker == 0xC4:
            huffman[content[0]] = content[1:]
    scan = jpeg[structure.first_scan.end : -2]
    strips = re.split(rb"\xff[\xd0-\xd7]", scan) if tables_form == "strips" else [scan]
    blobs = [quantization[0], quantization[1], huffman[0], huffman[1], huffman[16], huffman[17]]
    if tables_form == "stream":
        blobs = [jpeg]
    parts = [*strips, *blobs]
    entries = {256: (LONG, (64,)), 257: (LONG, (48,)), 258: (SHORT, (8, 8, 8)), 259: (SHORT, (6,)), 277: (SHORT, (3,))}
    entries |= {
        262: (SHORT, (6,)),
        278: (LONG, (8 * row_step if tables_form == "strips" else 48,)),
        530: (SHORT, (column_step, row_step)),
    }
    # The tables follow the strips.
    offsets, at = [], 8
    for part in parts:
        offsets.append(at)
        at += len(part) + len(part) % 2
    table_offsets = offsets[len(strips) :]
    entries |= {273: (LONG, tuple(offsets[: len(strips)])), 279: (LONG, tuple(map(len, strips)))}
    if tables_form == "stream":
        entries |= {513: (LONG, (table_offsets[0],)), 514: (LONG, (len(jpeg),))}
    else:
        q0, q1, dc0, dc1, ac0, ac1 = table_offsets
        entries |= {519: (LONG, (q0, q1, q1)), 520: (LONG, (dc0, dc1, dc1)), 521: (LONG, (ac0, ac1, ac1))}
    data = build_tiff(entries, parts)
    np.testing.assert_array_equal(decode_image(data).rgb, expected)
    invalid_tags = {513: (LONG, (len(data) - 2,)), 519: (LONG, (1,))}
    assert decode_error(build_tiff(entries | invalid_tags, parts))[0] == "BrokenImage"
