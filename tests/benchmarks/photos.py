"""Inputs of the benchmark: any number of different photographs, cropped from a few; the same for the same seed."""

import io
import tarfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 256
LEAST, MOST = 100, 4_000
"""Long side of mixed sizes, in pixels."""
SIGMA = 15.0
"""Noise of the images to denoise, in 8-bit levels."""
QUALITY = 90
"""Quality of JPEGs, in 4:4:4: decoders differ on halved chroma by more than the comparison allows."""
SHARD_IMAGES = 250
GOLDEN = 0.618033988749895
SUFFIXES = (".jpg", ".jpeg", ".png")
# The photographs of scikit-image that are large enough to crop.
BUNDLED = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg",
)  # fmt: skip


def sources(folder: str | None) -> list[str]:
    """Return the photographs to crop: those below a folder, or scikit-image's."""
    if folder:
        return sorted(str(p) for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES)
    bundled = [files("skimage.data").joinpath(name) for name in BUNDLED]
    return [str(path) for path in bundled if path.is_file()]


def size_of(number: int, mixed: bool) -> tuple[int, int]:
    """Return (width, height) of an image. Mixed sizes are spread evenly over the logarithm of the side."""
    if not mixed:
        return SIDE, SIDE
    long = round(LEAST * (MOST / LEAST) ** ((number + 1) * GOLDEN % 1))
    short = round(long * (0.5 + 0.5 * (number * GOLDEN * GOLDEN % 1)))
    return (long, short) if number % 2 else (short, long)


def cut(photo: Image.Image, number: int, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return a random crop of a photograph, resized."""
    width, height = size
    scale = min(photo.width / width, photo.height / height)
    part = rng.uniform(0.5, 1.0) * scale
    x, y = rng.uniform(0, photo.width - part * width), rng.uniform(0, photo.height - part * height)
    return photo.resize(size, Image.Resampling.BICUBIC, (x, y, x + part * width, y + part * height))


def make_some(paths: list[str], folder: str, mixed: bool, noisy: bool, kept: int, numbers: Iterable[int]) -> None:
    """Write NUMBER.jpg for each number; below `kept` also the clean pixels to `FOLDER.clean`."""
    opened: dict[str, Image.Image] = {}
    for number in numbers:
        rng = np.random.default_rng([mixed, noisy, number])
        path = paths[rng.integers(len(paths))]
        if path not in opened:
            opened[path] = Image.open(path).convert("RGB")
        image = cut(opened[path], number, size_of(number, mixed), rng)
        name = f"{number:06d}.jpg"
        if number < kept:
            image.save(f"{folder}.clean/{name}.png", compress_level=1)
        if noisy:
            pixels = np.asarray(image)
            noise = rng.standard_normal(pixels.shape, np.float32) * SIGMA
            image = Image.fromarray((pixels + noise).round().clip(0, 255).astype(np.uint8))
        image.save(f"{folder}/{name}", quality=QUALITY, subsampling=0)


def make(folder: Path, count: int, photos: str | None, mixed: bool, noisy: bool, kept: int, processes: int) -> None:
    """Write `count` different images to a folder."""
    folder.mkdir(parents=True)
    Path(f"{folder}.clean").mkdir()
    some = partial(make_some, sources(photos), str(folder), mixed, noisy, kept)
    with ProcessPoolExecutor(processes) as pool:
        list(pool.map(some, [range(rank, count, processes) for rank in range(processes)]))


def first(folder: Path, count: int, target: Path) -> Path:
    """Return a folder with hard links to the first images of another folder."""
    if not target.exists():
        target.mkdir(parents=True)
        for path in sorted(folder.iterdir())[:count]:
            (target / path.name).hardlink_to(path)
    return target


def shards(folder: Path, count: int, target: Path) -> None:
    """Write the first images of a folder into tars of 250."""
    target.mkdir(parents=True)
    paths = sorted(folder.iterdir())[:count]
    for number, start in enumerate(range(0, count, SHARD_IMAGES)):
        with tarfile.open(target / f"{number:05d}.tar", "w") as tar:
            for path in paths[start : start + SHARD_IMAGES]:
                member = tarfile.TarInfo(path.name)
                data = path.read_bytes()
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
