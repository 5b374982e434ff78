"""Resizing and cropping before the network: sizes, pixels, and what a run records and refuses."""

from math import log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.fitting import MAX_ASPECT, Fitting, apply_fitting, plan_fitting
from imagemill.pipeline.resolve import resolve_task
from imagemill.pipeline.run import run
from tests.support.folders import exif_of, rows

SIDES = st.integers(1, 20_000)


@given(SIDES, SIDES, st.integers(1, 128), st.integers(0, 3_000_000))
@example(1024, 1024, 64, 2**20 - 64**2)
@example(20_000, 1, 64, 2**20)
def test_bucket_has_the_nearest_aspect_ratio(width: int, height: int, step: int, more: int) -> None:
    """Compare the chosen bucket with every size that is allowed."""
    area = step * step + more
    fitting = plan_fitting(width, height, ImageConfig(resize=f"bucket:{area}:{step}"))
    left, top, *box = fitting.crop
    assert box[0] % step == box[1] % step == 0
    assert 0 < box[0] * box[1] <= area
    # One side cannot be longer by one step.
    assert max(box[0] * (box[1] + step), box[1] * (box[0] + step)) > area
    sides = range(step, area // step + 1, step)
    allowed = [(side, area // side // step * step) for side in sides if area // side // step * step <= MAX_ASPECT * side]
    allowed = [size for size in allowed if size[0] <= MAX_ASPECT * size[1]]
    distances = [abs(log(w / h) - log(width / height)) for w, h in [*allowed, *(size[::-1] for size in allowed)]]
    assert abs(log(box[0] / box[1]) - log(width / height)) <= min(distances) + 1e-9
    # The resized image covers the bucket, touches it on one side, keeps its shape, and is cut equally on both sides.
    assert fitting.resized[0] >= box[0]
    assert fitting.resized[1] >= box[1]
    assert fitting.resized[0] == box[0] or fitting.resized[1] == box[1]
    scale = max(box[0] / width, box[1] / height)
    assert fitting.resized == pytest.approx((width * scale, height * scale), abs=1)
    assert (left, top) == ((fitting.resized[0] - box[0]) // 2, (fitting.resized[1] - box[1]) // 2)


@pytest.mark.parametrize(
    ("size", "resize", "crop", "resized", "box"),
    [
        ((1000, 600), "max:512", "none", (512, 307), (0, 0, 512, 307)),
        ((1000, 600), "max:512", "multiple:8", (512, 307), (0, 1, 512, 304)),
        ((300, 200), "max:512", "none", (300, 200), (0, 0, 300, 200)),
        ((300, 201), "none", "multiple:16", (300, 201), (6, 4, 288, 192)),
        ((1000, 600), "bucket:262144:512", "none", (853, 512), (170, 0, 512, 512)),
        ((100, 100), "bucket:1048576:64", "none", (1024, 1024), (0, 0, 1024, 1024)),
        ((1536, 1024), "bucket:1048576:64", "none", (1248, 832), (16, 0, 1216, 832)),
    ],
)
def test_sizes_of_each_rule(size, resize, crop, resized, box):
    assert plan_fitting(*size, ImageConfig(resize=resize, crop=crop)) == Fitting(resized, box)


def test_pixels_are_those_of_resize_then_crop(photo):
    """Only the part that remains is computed; the result is that of Pillow's resize of the whole image."""
    for fitting in (Fitting((128, 91), (16, 3, 96, 80)), Fitting((400, 285), (0, 13, 400, 256))):
        left, top, width, height = fitting.crop
        whole = Image.fromarray(photo).resize(fitting.resized, Image.Resampling.LANCZOS)
        expected = np.asarray(whole.crop((left, top, left + width, top + height)), np.int16)
        fitted = apply_fitting(photo, fitting)
        assert fitted.shape == (height, width, 3)
        assert np.abs(fitted - expected).max() <= 1


def test_narrow_image_needs_little_memory():
    """Resizing the whole image to cover its bucket would make an image of 5 gigapixels."""
    fitting = plan_fitting(20_000, 2, ImageConfig(resize="bucket:1048576:64"))
    assert fitting.resized[0] > 4_000_000
    assert apply_fitting(np.zeros((2, 20_000), np.uint8), fitting).shape == (fitting.crop[3], fitting.crop[2])


def test_image_smaller_than_its_crop_is_rejected(tmp_path):
    Image.new("RGB", (100, 7)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"100×7 pixels have no part .* image\.crop=multiple:8") as e:
        decode_image((tmp_path / "a.png").read_bytes(), config=ImageConfig(crop="multiple:8"))
    assert e.value.error_class == "TooSmall"


@pytest.mark.parametrize("rule", ["max:0", "max", "bucket:100", "bucket:100:64", "cover:5"])
def test_invalid_rules_are_refused(rule):
    with pytest.raises(ValueError, match="resize"):
        ImageConfig(resize=rule)


@pytest.mark.parametrize("task", ["inpaint", "colorize"])
def test_tasks_that_keep_source_pixels_refuse_resizing(task):
    image = ImageConfig(resize="max:64", crop="multiple:8")
    with pytest.raises(ConfigError, match=f"image.crop, image.resize: {task} keeps pixels of the source"):
        resolve_task(RunConfig(task=task, input="in", output="out", image=image))


def test_run_records_how_images_were_fitted(tmp_path: Path, crops: list[np.ndarray]) -> None:
    """The image is upright before it is resized. Images that keep their size have no columns."""
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    Image.fromarray(crops[0]).resize((120, 80)).save(source / "turned.jpg", exif=exif_of(6))
    rgba = Image.fromarray(crops[1]).resize((100, 70)).convert("RGBA")
    rgba.save(source / "alpha.png")
    Image.fromarray(crops[2]).resize((56, 40)).save(source / "small.png")
    image = ImageConfig(resize="max:60", crop="multiple:8")
    config = RunConfig(task="denoise", input=str(source), output=str(output), image=image, params={"sigma": 5})
    assert run(config)["ok"] == 3
    made = {row["rel_path"]: row for row in rows(output)}
    names = ("orig_width", "orig_height", "resized_width", "resized_height")
    box = ("crop_left", "crop_top", "crop_width", "crop_height")
    assert [made["turned.jpg"][name] for name in (*names, *box)] == [120, 80, 40, 60, 0, 2, 40, 56]
    assert [made["alpha.png"][name] for name in (*names, *box)] == [100, 70, 60, 42, 2, 1, 56, 40]
    assert [made["small.png"][name] for name in (*names, *box)] == [56, 40] + [None] * 6
    sizes = {path.name: Image.open(path).size for path in (output / "images").iterdir()}
    assert sizes == {"turned.jpg": (40, 56), "alpha.png": (56, 40), "small.png": (56, 40)}
    assert Image.open(output / "images/alpha.png").mode == "RGBA"
    # The rule is part of the version.
    assert run(config)["planned"] == 0
    assert run(config.model_copy(update={"image": ImageConfig(resize="max:50")}))["planned"] == 3
