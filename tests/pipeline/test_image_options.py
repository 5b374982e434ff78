"""The options of `image`, newer formats and bit depths, alone and in runs over folders."""

import struct
import zlib
from contextlib import suppress
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import IFD, Base

from imagemill.models.metrics import psnr_db
from imagemill.pipeline.config import RunConfig, validate
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.images import decode, samples
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.encode import choose_output_format
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.camera import with_metadata
from tests.support.camera_raw import dng_file
from tests.support.heifs import HEIGHT, WIDTH, heif_file, picture
from tests.support.icc import ADOBE_RGB, DISPLAY_P3, cmyk_profile, convert_from_srgb, rgb_profile
from tests.support.image_files import H, W, encode, encode_as, open_image
from tests.support.sample_images import png


def test_alpha_option_flattens_onto_colour(photo):
    alpha = np.tile(np.linspace(0, 255, W).astype(np.uint8), (H, 1))
    decoded = decode_image(encode_as(np.dstack([photo, alpha]), "PNG"), config=ImageConfig(alpha="#FF8000"))
    share = alpha[..., None] / 255
    assert np.abs(decoded.rgb - (photo * share + np.array([255, 128, 0]) * (1 - share))).max() <= 1
    assert (decoded.alpha, decoded.has_alpha) == (None, True)
    assert open_image(encode(decoded.rgb, decoded, "PNG")).mode == "RGB"
    flattened_image = decode_image(encode_as(photo, "PNG"), config=ImageConfig(alpha="#ff8000"))
    np.testing.assert_array_equal(flattened_image.rgb, photo)
    assert not flattened_image.has_alpha


def test_alpha_option_keeps_gray_on_gray_matte(photo):
    data = encode_as(Image.merge("LA", [Image.fromarray(photo[..., n]) for n in (0, 1)]), "PNG")
    assert decode_image(data, config=ImageConfig(alpha="#808080")).is_gray
    decoded = decode_image(data, config=ImageConfig(alpha="#ff0000"))
    assert not decoded.is_gray
    assert np.ptp(decoded.rgb, 2).max() > 50


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("alpha", None, "quote the colour"),
        ("alpha", "white", "alpha"),
        ("quality", 0, "greater than or equal to 1"),
        ("format", "gif", "'jpeg', 'png', 'webp', 'tiff' or 'avif'"),
        ("depth", 8, "valid: alpha, crop, format, icc, metadata, quality, resize"),
    ],
)
def test_invalid_option_names_valid_values(key, value, message):
    with pytest.raises(ConfigError, match=f"image.{key}|{key}") as error_info:
        validate(RunConfig, {"task": "denoise", "image": {key: value}}, "a.yaml")
    assert message in str(error_info.value)


@pytest.mark.parametrize(
    ("image_format", "options", "least_db"),
    [("AVIF", {"quality": 95, "subsampling": "4:4:4"}, 38), ("JPEG2000", {}, 99), ("JPEG2000", {"no_jp2": True}, 99)],
)
def test_decode_avif_and_jpeg2000(photo, image_format, options, least_db):
    for image in (photo, np.dstack([photo, photo[..., 1]])):
        decoded = decode_image(encode_as(image, image_format, **options))
        assert psnr_db(decoded.rgb, photo) > least_db or (decoded.rgb == photo).all()
        assert (decoded.format, decoded.frames, decoded.bit_depth) == (image_format, 1, 8)
        assert decoded.has_alpha == (image.shape[2] == 4)
    file = encode_as(photo, image_format, **options)
    for end in range(0, len(file), len(file) // 60):
        with suppress(ImageError):
            decode_image(file[:end])


@given(
    st.sampled_from(["AVIF", "JPEG2000"]),
    st.lists(st.tuples(st.integers(0, 600), st.integers(0, 255)), min_size=1, max_size=6),
)
@settings(max_examples=200)
def test_mutated_avif_and_jpeg2000_raise_image_errors(image_format, changes):
    data = bytearray(encode_as(Image.linear_gradient("L").resize((24, 16)).convert("RGB"), image_format))
    for offset, value in changes:
        data[offset % len(data)] = value
    with suppress(ImageError):
        assert decode_image(bytes(data), 1_000_000).rgb.dtype == np.uint8


def test_too_many_pixels_names_key_and_flag(photo):
    for image_format in ("AVIF", "JPEG2000"):
        with pytest.raises(ImageError, match=r"over max_pixels=9599 .*: --set max_pixels=9600$") as error_info:
            decode_image(encode_as(photo, image_format), H * W - 1)
        assert error_info.value.error_class == "TooManyPixels"


def test_too_many_pixels_without_key_names_no_flag(monkeypatch):
    """Training, evaluation, search and the Python API have no key `max_pixels`."""
    monkeypatch.setattr(decode, "MAX_PIXELS", 99_000_000)
    with pytest.raises(ImageError, match=r"^10000×10000 = 100\.0 MP is over the limit of 99 MP\. Make the image smaller\.$"):
        decode_image(png(10_000, 10_000, 8, 2, []))


def encode_16_bit_png(samples: np.ndarray) -> bytes:
    """Encode (H,W,3) uint16 to a PNG, which Pillow cannot write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", *samples.shape[1::-1], 16, 2, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + line.astype(">u2").tobytes() for line in samples))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_decode_scales_16_bits_without_clipping(photo):
    # The samples use the full range: clipping at 255 would leave only white.
    deep_samples = photo.astype(np.uint16) * 257
    for data in (
        encode_16_bit_png(deep_samples),
        encode_as(deep_samples[..., 0], "PNG"),
        encode_as(deep_samples[..., 0], "TIFF"),
        encode_as(deep_samples[..., 0], "JPEG2000"),
    ):
        decoded = decode_image(data)
        np.testing.assert_array_equal(decoded.rgb, np.repeat(photo[..., :1], 3, 2) if decoded.is_gray else photo)
        assert decoded.bit_depth == 16


def test_bit_depth_of_every_format_is_recorded(photo):
    for bits in (8, 10, 12, 16):
        samples = (photo.astype(np.uint32) * ((1 << bits) - 1) // 255).astype(np.uint8 if bits == 8 else np.uint16)
        files = [imagecodecs.jpeg2k_encode(samples, level=0, reversible=True, bitspersample=bits)]
        if bits < 16:
            files.append(imagecodecs.avif_encode(samples, level=100, pixelformat="yuv444", matrix=0, bitspersample=bits))
        for data in files:
            decoded = decode_image(data)
            assert decoded.bit_depth == bits
            np.testing.assert_array_equal(decoded.rgb, np.round(samples * (255 / ((1 << bits) - 1))))


def test_decode_in_strips_equals_decode_in_one_piece(photo, monkeypatch):
    rgba = np.dstack([photo, photo[..., 1]])
    exif = Image.Exif()
    files = [
        *(encode_as(rgba, "PNG", exif=oriented(exif, n), icc_profile=rgb_profile(ADOBE_RGB)) for n in range(1, 9)),
        encode_as(Image.fromarray(photo).quantize(32), "GIF"),
        encode_as(photo[..., 0].astype(np.uint16) * 257, "PNG"),
        encode_as(Image.fromarray(photo).convert("CMYK"), "TIFF", icc_profile=cmyk_profile()),
        encode_as(photo[..., 0], "JPEG", exif=oriented(exif, 5)),
    ]
    in_one_piece = [decode_image(data) for data in files]
    encoded = [encode(decoded.rgb, decoded, "PNG") for decoded in in_one_piece]
    monkeypatch.setattr(samples, "STRIP_PIXELS", 1_500)
    for data, expected, expected_file in zip(files, in_one_piece, encoded, strict=True):
        decoded = decode_image(data)
        np.testing.assert_array_equal(decoded.rgb, expected.rgb)
        if expected.alpha is not None:
            np.testing.assert_array_equal(decoded.alpha, expected.alpha)
        assert encode(decoded.rgb, decoded, "PNG") == expected_file


def oriented(exif: Image.Exif, orientation: int) -> bytes:
    exif[Base.Orientation] = orientation
    return exif.tobytes()


def test_quality_option_changes_file_size(photo):
    decoded = decode_image(encode_as(photo, "PNG"))
    for image_format in ("JPEG", "WEBP", "AVIF"):
        sizes = [len(encode(photo, decoded, image_format, quality)) for quality in (50, 80, 95)]
        assert sizes == sorted(set(sizes))
    assert encode(photo, decoded, "JPEG") == encode(photo, decoded, "JPEG", 95)


def rows(output: Path, folder: str) -> dict[str, dict]:
    return {row["rel_path"]: row for part in (output / folder).glob("*.parquet") for row in pq.read_table(part).to_pylist()}


def test_format_option_converts_mixed_folder(tmp_path, photo):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    alpha = np.dstack([photo, np.tile(np.arange(W, dtype=np.uint8) * 2, (H, 1))])
    kinds = {
        "camera.jpg": with_metadata(photo, "JPEG"),
        "wide.jpg": encode_as(convert_from_srgb(photo, DISPLAY_P3), "JPEG", quality=95, icc_profile=rgb_profile(DISPLAY_P3)),
        "print.jpg": encode_as(Image.fromarray(photo).convert("CMYK"), "JPEG", icc_profile=cmyk_profile()),
        "logo.png": encode_as(alpha, "PNG"),
        "odd.png": encode_as(photo, "PNG", icc_profile=b"no profile"),
        "new.avif": encode_as(photo, "AVIF"),
        "archive.jp2": encode_as(photo, "JPEG2000"),
        "deep.tif": encode_as(photo[..., 0].astype(np.uint16) * 257, "TIFF"),
        "already.webp": encode_as(photo, "WEBP"),
        "moves.gif": encode_as(Image.fromarray(photo), "GIF", save_all=True, append_images=[Image.new("RGB", (W, H))]),
        "burst.mpo": encode_as(photo, "MPO", save_all=True, append_images=[Image.new("RGB", (W, H))]),
        "phone.heic": heif_file(picture()),
        "exported.jpg": heif_file(picture("gray")),
        "future.JXL": imagecodecs.jpegxl_encode(photo, level=90),
        "sensor.dng": dng_file(photo / 255),
        "broken.heic": b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(100),
    }
    for name, data in kinds.items():
        (source / name).write_bytes(data)
    image = {"format": "webp", "alpha": "#ffffff", "metadata": "strip_gps", "quality": 90}
    config = RunConfig(task="denoise", input=str(source), output=str(output), image=ImageConfig(**image))
    record = run(config)
    assert (record["planned"], record["ok"], record["rejected"], record["ignored"]) == (16, 15, 1, 0)
    rejects = rows(output, "rejects")
    assert {name: row["error_class"] for name, row in rejects.items()} == {"broken.heic": "BrokenImage"}
    assert rejects["broken.heic"]["error"] == "HEIC: the file declares no image. Restore the file."
    result_rows = rows(output, "results")
    assert {name for name, row in result_rows.items() if row["icc"] != "none"} == {"wide.jpg", "print.jpg", "odd.png"}
    assert [result_rows[name]["icc"] for name in ("wide.jpg", "print.jpg", "odd.png")] == [
        "converted",
        "converted",
        "unreadable",
    ]
    assert [(name, row["has_alpha"]) for name, row in result_rows.items() if row["has_alpha"]] == [("logo.png", True)]
    assert [result_rows[name]["frames"] for name in ("moves.gif", "burst.mpo", "logo.png")] == [2, 2, 1]
    assert result_rows["deep.tif"]["bit_depth"] == 16
    for name, row in result_rows.items():
        assert row["output_uri"] == f"images/{name}" + ("" if name.endswith(".webp") else ".webp")
        encoded = open_image((output / row["output_uri"]).read_bytes())
        assert encoded.format == "WEBP"
        assert encoded.mode == "RGB"
        other_sizes = {"camera.jpg": (H, W), "phone.heic": (WIDTH, HEIGHT), "exported.jpg": (WIDTH, HEIGHT)}
        assert encoded.size == other_sizes.get(name, (W, H))
    assert psnr_db(np.asarray(open_image((output / "images/wide.jpg.webp").read_bytes())), photo) > 28
    camera = open_image((output / "images/camera.jpg.webp").read_bytes())
    assert camera.getexif()[Base.Make] == "Maker"
    assert IFD.GPSInfo not in camera.getexif()
    assert np.asarray(open_image((output / "images/logo.png.webp").read_bytes()))[:, :3].min() > 235
    assert verify(Store(str(output))).problems == []
    assert build_plan(resolve(config)).done == 15
    assert build_plan(resolve(config.model_copy(update={"image": ImageConfig(**image | {"quality": 91})}))).done == 0


def build_config(task: str, folder: Path, **image: object) -> RunConfig:
    folder.mkdir(exist_ok=True)
    return RunConfig(task=task, input=str(folder), output=f"{folder}.out", image=ImageConfig(**image))


def test_version_contains_only_non_default_options(tmp_path):
    plain_job = resolve(build_config("denoise", tmp_path / "a"))
    assert "image" not in plain_job.parameters
    assert resolve(build_config("denoise", tmp_path / "a", quality=95, alpha="keep")).parameters == plain_job.parameters
    other_job = resolve(build_config("denoise", tmp_path / "a", alpha="#FFFFFF", icc="keep"))
    assert other_job.parameters == plain_job.parameters | {"image": {"alpha": "#ffffff", "icc": "keep"}}


def test_option_that_task_cannot_use_is_a_config_error(tmp_path):
    for task in ("inpaint", "colorize"):
        for image_format in ("jpeg", "webp", "avif"):
            with pytest.raises(ConfigError, match=f"image.format='{image_format}'.*{task}.*Valid: png, tiff"):
                resolve(build_config(task, tmp_path / "a", format=image_format))
        assert (
            choose_output_format(
                "JPEG", True, resolve(build_config(task, tmp_path / "a", format="tiff")).config.image.format
            )
            == "TIFF"
        )
    for key, value in (("format", "png"), ("icc", "keep"), ("metadata", "strip"), ("quality", 80)):
        with pytest.raises(ConfigError, match=f"image.{key}: compress writes latents"):
            resolve(build_config("compress", tmp_path / "a", **{key: value}))
    resolve(build_config("compress", tmp_path / "a", alpha="#000000"))
    assert [choose_output_format(f, exact=True) for f in ("AVIF", "JPEG2000", "TIFF")] == ["PNG", "PNG", "TIFF"]
    assert [choose_output_format(f) for f in ("AVIF", "JPEG2000")] == ["AVIF", "PNG"]
