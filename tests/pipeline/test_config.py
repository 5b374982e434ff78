"""YAML values mean what a person expects."""

from pathlib import Path
from typing import Any

import pytest

from imagemill.pipeline.config import RunConfig, read_yaml, set_value, validate
from imagemill.pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("22:30", "22:30"), ("6:30", "6:30"), ("190:20:30", "190:20:30"), ("2026-03-01", "2026-03-01"),
        ("2026-03-01T10:00:00Z", "2026-03-01T10:00:00Z"), ("12", 12), ("-1.5", -1.5), ("1.5e+3", 1500.0), ("0x10", 16),
        ("yes", True), ("~", None), (".inf", float("inf")), ("00501", 321), ("'00501'", "00501"),
    ],
)  # fmt: skip
def test_yaml_value_is_text_if_time_or_date(text: str, value: object, tmp_path: Path) -> None:
    """YAML 1.1 reads times as numbers of base 60, and dates as objects that no key accepts."""
    (tmp_path / "c.yaml").write_text(f"key: {text}\n")
    assert read_yaml(str(tmp_path / "c.yaml")) == {"key": value}
    values: dict[str, object] = {}
    set_value(values, f"key={text}")
    assert values == {"key": value}


def test_yaml_folder_named_by_date_is_input(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("task: denoise\ninput: 2026-03-01\noutput: 22:30\n")
    config = validate(RunConfig, read_yaml(str(tmp_path / "c.yaml")), "c.yaml")
    assert (config.input, config.output) == ("2026-03-01", "22:30")


def test_set_value_takes_colour_for_text() -> None:
    """In YAML, `#` starts a comment; in `--set key=#fff` it starts a colour."""
    values: dict[str, object] = {}
    set_value(values, "params.key=#00ff00")
    assert values == {"params": {"key": "#00ff00"}}


@pytest.mark.parametrize("text", ["no", "on", "007", "1.50"])
def test_yaml_text_without_quotes_is_one_clear_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(f"task: denoise\ninput: {text}\n")
    with pytest.raises(ConfigError, match=r"^c: input = \S+: must be a valid string; put it in quotes$"):
        validate(RunConfig, read_yaml(str(tmp_path / "c.yaml")), "c")


@pytest.mark.parametrize(
    ("values", "retry_failed", "workers"),
    [
        ({"retry_failed": True, "pool": {"workers": 3}}, True, 3),
        ({"retry_failed": "TooManyPixels"}, "TooManyPixels", None),
        ({"retry": True, "pool": {"actors": 3}}, True, 3),
        ({"retry": False, "retry_failed": True, "pool": {"actors": 3, "workers": 4}}, True, 4),
    ],
)
def test_config_old_keys_still_work(values: dict[str, Any], retry_failed: bool | str, workers: int | None) -> None:
    """Old configs use `retry` and `pool.actors`; if both are set, the new key wins."""
    config = validate(RunConfig, {"task": "denoise", **values}, "c")
    assert (config.retry_failed, config.pool.workers) == (retry_failed, workers)
    stored_config = config.model_dump(mode="json")
    assert (stored_config["retry_failed"], stored_config["pool"]["workers"]) == (retry_failed, workers)
    assert RunConfig.model_validate(stored_config) == config


@pytest.mark.parametrize("value", ["two words", "1st", ""])
def test_config_retry_failed_needs_a_class_name(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^c: retry_failed = .*TooManyPixels"):
        validate(RunConfig, {"task": "denoise", "retry_failed": value}, "c")


COST_OF_MEASURING = 12
"""How many times as long as all other work on an image it takes to measure the image."""


def test_measured_share_is_bounded_by_default() -> None:
    """A small run measures every image; measuring takes at most 5 % of the time of a run of 4,000 images or more."""
    config = RunConfig(task="compress")
    assert all(config.measured_share(images) == 1 for images in range(1, 17))
    measured = [round(images * config.measured_share(images), 6) for images in range(1, 100_000)]
    assert measured == sorted(measured)
    assert measured[-1] == 200
    for images in range(4_000, 1_000_000, 500):
        seconds = COST_OF_MEASURING * config.measured_share(images)
        assert seconds / (1 + seconds) <= 0.05


@pytest.mark.parametrize(("quality", "share"), [(0, 0), (1, 0.0001), (200, 0.02), (20_000, 1), (False, 0), (True, 0.004)])
def test_measured_share_obeys_an_explicit_number(quality: int, share: float) -> None:
    """Old configs say true for the default and false for none."""
    config = validate(RunConfig, {"task": "compress", "quality": quality}, "c")
    assert config.measured_share(10_000) == pytest.approx(share)
    assert RunConfig.model_validate(config.model_dump(mode="json")).measured_share(10_000) == pytest.approx(share)
    assert config.model_copy(update={"reconstruct": True}).measured_share(10_000) == 1
