"""Measure the memory for decoding and encoding a picture of 100 MP. Run: python tests/benchmarks/picture_memory.py

MB do not include the file's bytes. Each line is a new process. The picture is a photo of scikit-image, repeated to
10,000×10,000.
"""

import gc
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.encode import encode_output, to_pillow

SIDE = 10_000
KINDS = ("rgb.jpg", "turned.jpg", "gray.jpg", "rgb.png", "rgba.png", "gray16.png")


def make(folder: Path) -> None:
    photo = np.asarray(Image.open(str(files("skimage.data").joinpath("coffee.png"))).convert("RGB"))
    tiled = np.tile(photo, (SIDE // photo.shape[0] + 1, SIDE // photo.shape[1] + 1, 1))[:SIDE, :SIDE]
    rgb = Image.fromarray(tiled)
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(folder / "rgb.jpg", quality=90)
    rgb.save(folder / "turned.jpg", quality=90, exif=turned)
    rgb.convert("L").save(folder / "gray.jpg", quality=90)
    rgb.save(folder / "rgb.png", compress_level=1)
    rgb.convert("RGBA").save(folder / "rgba.png", compress_level=1)
    Image.fromarray(tiled[..., 1].astype(np.uint16) * 257).save(folder / "gray16.png", compress_level=1)


def resident_mb(key: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0]) / 1000


def peak_mb(began: float) -> float:
    """Return the peak memory since the last call, minus the memory at the start of the process."""
    peak = resident_mb("VmHWM") - began
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return peak


def measure(path: Path) -> None:
    data = path.read_bytes()
    began = resident_mb("VmRSS")
    peak_mb(began)
    start = time.perf_counter()
    picture = decode_image(data, SIDE * SIDE)
    decoded = time.perf_counter() - start
    decode_mb, held = peak_mb(began), resident_mb("VmRSS") - began
    start = time.perf_counter()
    out = encode_output(to_pillow(picture.rgb, picture, picture.format), picture, picture.format, 95)
    encoded = time.perf_counter() - start
    print(
        f"{path.name:12} file {len(data) / 1e6:5.0f} MB, output {len(out) / 1e6:5.0f} MB"
        f" | decode peak {decode_mb:6.0f} MB, {decoded:5.2f} s, leaves {held:5.0f} MB"
        f" | encode peak {peak_mb(began):6.0f} MB, {encoded:5.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
            for kind in KINDS:
                subprocess.run([sys.executable, __file__, f"{folder}/{kind}"], check=True)
