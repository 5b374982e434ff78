"""Test statistics of latents and drift between runs."""

from pathlib import Path

import numpy as np
import pytest

from imagemill.jobs.drift import Moments, drift
from imagemill.jobs.nightly import measure_drift
from imagemill.jobs.stats import show_stats
from imagemill.models import checkpoint as checkpoints
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.latent_values import latent_batches
from imagemill.pipeline.output.run_history import read_run_records
from imagemill.pipeline.output.snapshot import read_snapshot
from tests.support.outputs import compressed


def draw_moments(seed: int, images: int, mean: float = 0.0, deviation: float = 1.0) -> Moments:
    moments, rng = Moments(), np.random.default_rng(seed)
    for _ in range(4):
        values = rng.normal(mean, deviation, (images // 4, 8, 5, 5)).astype(np.float32)
        moments.add(values, np.full(values.shape[:2], 0.01), {"a"})
    return moments


def moments_of(values: np.ndarray, width: np.ndarray | float = 1.0) -> Moments:
    """Return the moments of latents.

    Args:
        values: latents (N,C,h,w).
        width: quantiser step, one value or (C,).
    """
    moments = Moments()
    moments.add(values, np.broadcast_to(width, values.shape[:2]), {"a"})
    return moments


def test_moments_equal_numpy() -> None:
    values = np.random.default_rng(0).normal(3, 2, (20, 4, 6, 6)).astype(np.float32)
    moments = Moments()
    for chunk in (values[:7], values[7:]):
        moments.add(chunk, np.ones(chunk.shape[:2]), {"a"})
    np.testing.assert_allclose(moments.mean, values.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(moments.variance, values.var((0, 2, 3)), rtol=1e-5)


def test_drift_measures_a_known_shift() -> None:
    """The measured distance equals a known shift, and random variation raises no alarm."""
    reference = draw_moments(0, 400)
    similar_moments, shifted_moments, wider_moments = (
        draw_moments(1, 400),
        draw_moments(2, 400, mean=0.5),
        draw_moments(3, 400, deviation=1.5),
    )
    assert drift(shifted_moments, reference).distance == pytest.approx(0.5, abs=0.05)
    assert drift(wider_moments, reference).distance == pytest.approx(0.5, abs=0.05)
    null_drift = drift(similar_moments, reference)
    assert null_drift.distance < 4 * null_drift.chance < 0.1
    assert drift(shifted_moments, reference).alarming(0.3)
    assert not drift(shifted_moments, reference).alarming(0.7)
    small_drift = drift(draw_moments(4, 4), draw_moments(5, 4))
    assert small_drift.distance > 0.1
    assert not small_drift.alarming(0.05)


def test_drift_of_random_splits_matches_chance(tmp_path: Path, crops: list[np.ndarray]) -> None:
    output = compressed(tmp_path, {f"{n}.png": crop for n, crop in enumerate(crops)}, "compress-small", rows_per_part=1000)
    [latents] = latent_batches(read_snapshot(output), ["rel_path"], [])
    values, model = latents.values, checkpoints.build(*checkpoints.read("compress-small"))
    width = model.dequantisation(26)[0].detach().numpy()
    for size in (6, 16, len(values) // 2):
        orders = [np.random.default_rng(seed).permutation(len(values)) for seed in range(100)]
        splits = [
            drift(moments_of(values[order[:size]], width), moments_of(values[order[size:]], width)) for order in orders
        ]
        # Few photos with a dozen overlapping crops each: many channels are active in few images, so the tail is long.
        assert np.median([split.distance for split in splits]) == pytest.approx(
            np.mean([split.chance for split in splits]), rel=0.5
        )
        assert np.mean([split.alarming(0) for split in splits]) <= 0.1
    half = len(values) // 2
    order = orders[0]
    shifted_moments = moments_of(2.5 * values[order[:half]] + 2 * values.std((0, 2, 3), keepdims=True), width)
    assert drift(shifted_moments, moments_of(values[order[half:]], width)).alarming(0)


def test_drift_limits_nearly_silent_channels() -> None:
    """A channel that is nearly silent in both runs does not dominate the distance."""
    day, night = np.rint(np.random.default_rng(0).normal(0, 3, (2, 200, 8, 10, 10))).astype(np.float32)
    # Symbols are 1 at one position in 20,000 in the first run, and at one in 200 in the second run.
    for values, interval in ((day, 20_000), (night, 200)):
        values[:, 7] = (np.arange(200 * 100) % interval == 0).reshape(200, 10, 10)
    null_drift = drift(moments_of(night), moments_of(day))
    assert null_drift.channels[7] < 1
    assert null_drift.distance < 0.3
    night[:, :7] += 3
    shift_drift = drift(moments_of(night), moments_of(day))
    assert shift_drift.distance == pytest.approx((7 / 8) ** 0.5, abs=0.1)
    assert shift_drift.alarming(0.5)


def test_stats_and_nightly_report_drift(tmp_path: Path, crops: list[np.ndarray], capsys) -> None:
    def build_images(numbers: range, value: int = 0) -> dict[str, np.ndarray]:
        return {f"{n}-{value}.png": (crops[n][:28, :28] // (1 + 3 * value)) for n in numbers}

    compressed(tmp_path, build_images(range(12)), fence=1)
    compressed(tmp_path, build_images(range(12, 24)), fence=2)
    output = compressed(tmp_path, build_images(range(12), 1), fence=3)
    runs = sorted(path.name for path in (tmp_path / "out/runs").iterdir())
    show_stats(output, None, None)
    stdout = capsys.readouterr().out
    assert all(run in stdout for run in runs)
    show_stats(output, None, runs[0])
    stdout = capsys.readouterr().out
    assert f"{runs[2]} (12 images) compared with {runs[0]} (12 images):\ndistance " in stdout
    first, second, last = read_run_records(output, runs)
    dark = measure_drift(output, last, 0.2)
    assert dark is not None
    assert (dark["alert"], dark["against"]) == (True, second["run_id"])
    assert not (measure_drift(output, last, 50.0) or {})["alert"]
    assert measure_drift(output, first, 0.2) is None
    assert measure_drift(output, last | {"checkpoint_sha256": "another"}, 0.2) is None
    with pytest.raises(ConfigError, match="run x has no rows"):
        show_stats(output, "x", runs[0])
    with pytest.raises(ConfigError, match="no rows of a run other than"):
        show_stats(compressed(tmp_path / "alone", build_images(range(2))), None, runs[0])


def test_stats_counts_replaced_rows(tmp_path: Path, crops, capsys) -> None:
    """Both tables count rows of a run that a later run replaced."""
    pieces = {f"{n}.png": crops[n][:28, :28] for n in range(12)}
    compressed(tmp_path, pieces, fence=1)
    output = compressed(tmp_path, {name: pieces[name] // 2 for name in list(pieces)[:6]}, fence=2)
    runs = sorted(path.name for path in (tmp_path / "out/runs").iterdir())
    show_stats(output, None, None)
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    show_stats(output, None, runs[0])
    comparison = capsys.readouterr().out
    assert (rows[runs[0]][0], rows[runs[1]][0]) == ("12", "6")
    assert f"{runs[1]} (6 images) compared with {runs[0]} (12 images):\ndistance {rows[runs[1]][4]}, " in comparison


def test_drift_of_two_single_images_is_no_alarm() -> None:
    one, other = (moments_of(np.full((1, 2, 3, 3), value, np.float32)) for value in (0, 1))
    assert not drift(one, other).alarming(0.1)


def test_stats_refuses_runs_of_different_models(tmp_path: Path, crops: list[np.ndarray]) -> None:
    compressed(tmp_path, {"a.png": crops[0][:28, :28]}, "conv-mnist", 1)
    output = compressed(tmp_path, {"b.png": crops[0][:28, :28]}, "conv-mnist-transposed", 2)
    runs = sorted(path.name for path in (tmp_path / "out/runs").iterdir())
    with pytest.raises(ConfigError, match="different models"):
        show_stats(output, runs[1], runs[0])
    show_stats(output, None, None)
