"""What the benchmark makes of its runs: medians, slopes, equality, processes that lose their parents."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import photos
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from figures import Line, Run, Summary, line, number, spread, summary, table
from outcome import deviation, images_in, latent_error, psnr_db, steady_rate, times_of
from PIL import Image

HERE = Path(__file__).parent


def a_run(images: int, wall_s: float, **other: object) -> Run:
    values = {"code": 0, "cpu_s": 2 * wall_s, "peak_pss_mb": 500.0, "processes": 3, "rate": 10.0, "deviation": 0.0}
    return Run("latents", "handwritten", images, 0, wall_s=wall_s, **(values | {"equal": True, "missing": 0} | other))


def test_line_fits_the_medians() -> None:
    assert line([(100, 3.0), (100, 5.0), (100, 4.0), (200, 6.0)]) == Line(2.0, 0.02)
    assert line([(100, 3.0), (100, 5.0)]) is None
    assert line([(100, 3.0), (200, 2.0)]) is None


def test_summary_uses_the_most_frequent_count() -> None:
    one = summary([a_run(100, 3.0), a_run(200, 5.0), a_run(200, 4.0), a_run(200, 9.0), a_run(200, 1.0, code=1)])
    assert isinstance(one, Summary)
    assert (one.images, one.wall.median, one.wall.least, one.wall.most, one.failed) == (200, 5.0, 4.0, 9.0, 1)
    assert one.cpu_ms.median == 50.0
    assert one.seconds_at(200) == 5.0
    assert one.seconds_at(400) == pytest.approx(9.0)
    assert summary([a_run(100, 3.0, missing=1)]) is None


def test_table_has_a_line_for_each_peer_and_the_limit() -> None:
    one = summary([a_run(100, 3.0)])
    assert one
    lines = table([one], {"handwritten": "by hand"}, spread([20.0, 30.0, 25.0]), None, "relative")
    assert len({text.count("|") for text in lines}) == 1
    assert "by hand" in lines[2]
    assert "0.40" in lines[2]
    assert lines[-1].startswith("| *limit* ")
    assert [number(value) for value in (None, 0.1234, 12.34, 1234.5)] == ["", "0.12", "12.3", "1,234"]


def test_steady_rate_starts_after_the_first_image() -> None:
    assert steady_rate([(10.0, 8), (11.0, 8), (12.0, 4)]) == 6.0
    assert steady_rate([(10.0, 8)]) is None
    assert steady_rate([(10.0, 1), (10.0, 1)]) is None


def test_deviation_compares_latents_of_any_storage(tmp_path: Path) -> None:
    symbols = np.arange(-6, 6, dtype=np.int8)
    stored = {
        "int8": pa.array([symbols], pa.list_(pa.int8())),
        "uint8": pa.array([symbols.astype(np.int16) + 128], pa.list_(pa.uint8())),
    }
    for name, values in stored.items():
        folder = tmp_path / name
        folder.mkdir()
        pq.write_table(pa.table({"path": ["file:///in/1.jpg"], "latent": values}), folder / "rows.parquet")
        (folder / "7.times").write_text("5.0 8\n4.0 8\n")
        assert images_in(folder) == ["1.jpg"]
        assert times_of(folder) == [(4.0, 8), (5.0, 8)]
        assert deviation(folder, {"1.jpg": symbols}, None) == 0
        assert deviation(folder, {"1.jpg": symbols, "2.jpg": symbols}, None) == float("inf")
    assert latent_error(np.array([3, 4]), np.array([3, 5])) == pytest.approx((1 / 34) ** 0.5)
    assert latent_error(np.array([3]), np.array([3, 5])) == float("inf")


def test_deviation_compares_images_by_psnr(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    clean = np.full((16, 16, 3), 100, np.uint8)
    reference = clean + np.uint8(4)
    Image.fromarray(clean + np.uint8(5)).save(tmp_path / "images/1.jpg", "PNG")
    off = deviation(tmp_path, {"1.jpg": reference}, {"1.jpg": clean})
    assert off == pytest.approx(20 * np.log10(5 / 4))
    assert psnr_db(clean, clean[:8]) == float("-inf")


def test_photos_are_different_and_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.clean").mkdir()
        (tmp_path / name).mkdir()
        photos.make_some(photos.sources(None), str(tmp_path / name), False, True, 1, range(4))
    a, b = ([path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("a", "b"))
    assert a == b
    assert len(set(a)) == 4
    assert [path.name for path in (tmp_path / "a.clean").iterdir()] == ["000000.jpg.png"]
    assert [path.name for path in photos.first(tmp_path / "a", 2, tmp_path / "c").iterdir()] != []
    sides = [max(photos.size_of(number, True)) for number in range(64)]
    assert min(sides) < 120
    assert max(sides) > 3_300
    assert all(100 <= side <= 4_000 for side in sides)


def test_process_tree_counts_orphans(tmp_path: Path) -> None:
    # Run it in a separate process, because it becomes the parent of orphans.
    script = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from process_tree import watched
orphan = "import os, time; os.fork() or (time.sleep(0.5), sum(range(10**7)), open('ended', 'w')); raise SystemExit(3)"
usage = watched([sys.executable, "-c", orphan], {{}}, Path("log"), Path("."), 60)
assert usage.code == 3, usage
assert usage.processes >= 1, usage
assert usage.cpu_s > 0.05, usage
assert usage.peak_pss_mb > 1, usage
assert Path("ended").exists()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
