"""Which engine a run uses and why, and what the machine offers to workers."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from imagemill.__main__ import will_run_locally
from imagemill.pipeline import machine
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.engines.selection import choose, is_connected_to_ray, select_engine
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.machine import available_cpus, container_cpus, has_gpu

VARIABLES = ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_OVERRIDE_RESOURCES", "CUDA_VISIBLE_DEVICES")
LOCAL = ("local", "no cluster and no GPU")


@pytest.fixture(autouse=True)
def gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Remove all reasons for Ray; return the folder in which a driver would list GPUs."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("imagemill.pipeline.engines.selection.is_connected_to_ray", lambda: False)
    monkeypatch.setattr(machine, "GPU_DEVICES", (tmp_path / "gpus", tmp_path / "dxg"))
    return tmp_path / "gpus"


def config(**settings: object) -> RunConfig:
    return RunConfig(task="denoise", input="in", output="out", **settings)


def test_auto_is_local_without_cluster_and_gpu(gpus: Path) -> None:
    assert choose(config()) == LOCAL
    gpus.mkdir()
    assert choose(config()) == LOCAL, "a driver without a GPU"


@pytest.mark.parametrize(
    ("settings", "variables", "reason"),
    [
        ({"address": "10.0.0.1:6379"}, {}, "address 10.0.0.1:6379"),
        ({}, {"RAY_ADDRESS": "auto"}, "RAY_ADDRESS is set"),
        ({}, {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, "inside a submitted Ray job"),
        ({"pool": {"gpu": True}}, {}, "pool.gpu is true"),
        ({}, {"RAY_OVERRIDE_RESOURCES": '{"GPU": 1}'}, "RAY_OVERRIDE_RESOURCES names GPUs"),
        ({"engine": "ray"}, {}, "chosen by the config"),
    ],
)
def test_ray_is_selected_for_a_reason(settings, variables, reason: str, monkeypatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert choose(config(**settings)) == ("ray", reason)
    engine, shown_reason = select_engine(config(**settings))
    assert (engine.name, shown_reason) == ("ray", reason)


def test_empty_ray_address_is_none(monkeypatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert choose(config()) == LOCAL


def test_program_connected_to_ray_uses_ray(monkeypatch) -> None:
    monkeypatch.setattr("imagemill.pipeline.engines.selection.is_connected_to_ray", is_connected_to_ray)
    for is_initialized in (False, True):
        monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda value=is_initialized: value))
        assert choose(config())[0] == ("ray" if is_initialized else "local")
    # While another thread imports Ray, the module has no names yet.
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    assert choose(config()) == LOCAL


@pytest.mark.parametrize(
    ("gpu", "hidden", "expected"), [(None, None, "ray"), (False, None, "local"), (None, "", "local"), (None, "0", "ray")]
)
def test_machine_with_a_gpu(gpu: bool | None, hidden: str | None, expected: str, gpus: Path, monkeypatch) -> None:
    """pool.gpu=false and CUDA_VISIBLE_DEVICES leave the GPU to other programs."""
    (gpus / "0000:01:00.0").mkdir(parents=True)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert choose(config(pool={"gpu": gpu}))[0] == expected


def test_gpus_of_wsl_and_of_the_override(gpus: Path, monkeypatch) -> None:
    assert not has_gpu()
    gpus.with_name("dxg").touch()
    assert has_gpu()
    for override, expected in (('{"CPU": 2}', False), ('{"GPU": 0.5}', True), ("no JSON", False), ("[1]", False)):
        monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", override)
        assert has_gpu() == expected, override


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"address": "10.0.0.1:6379"}, r"^engine=local: cannot use the cluster at address=10\.0\.0\.1:6379\. Omit one"),
        ({"pool": {"gpu": True}}, r"^engine=local: has no GPU workers, which pool\.gpu=true asks for\. Set engine to ray$"),
    ],
)
def test_local_engine_refuses_what_needs_ray(settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select_engine(config(engine="local", **settings))


def test_local_engine_ignores_the_environment(gpus: Path, monkeypatch) -> None:
    """A variable of the shell is not an instruction for this run."""
    (gpus / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert select_engine(config(engine="local"))[0].name == "local"


def test_unknown_engine_is_refused() -> None:
    with pytest.raises(ValueError, match="engine"):
        config(engine="dask")


@pytest.mark.parametrize(
    ("line", "variables", "expected"),
    [
        ("denoise in out", {}, True),
        ("nightly night.yaml", {}, True),
        ("denoise in out --address auto", {}, False),
        ("denoise in out --engine ray", {}, False),
        ("models show denoise-small", {}, False),
        ("", {}, False),
        ("denoise in out", {"RAY_ADDRESS": "auto"}, False),
        ("run job.yaml", {"RAY_JOB_CONFIG_JSON_ENV_VAR": "{}"}, False),
    ],
)
def test_commands_that_start_workers_early(line: str, variables, expected: bool, monkeypatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert will_run_locally(line.split()) == expected


@pytest.mark.parametrize(
    ("cpu_max", "expected"),
    [("150000 100000\n", 1.5), ("50000 100000\n", 0.5), ("max 100000\n", None), ("", None), ("odd content", None)],
)
def test_quota_of_a_container_limits_cpus(cpu_max: str, expected: float | None, tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "cpu.max"
    file.write_text(cpu_max)
    monkeypatch.setattr(machine, "CPU_MAX", file)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    assert available_cpus() == (expected or 8)


@pytest.mark.parametrize(("quota", "expected"), [("300000", 3.0), ("-1", float("inf"))])
def test_quota_of_cgroup_1(quota: str, expected: float, tmp_path: Path, monkeypatch) -> None:
    for name, value in (("quota", quota), ("period", "100000")):
        (tmp_path / name).write_text(value)
    monkeypatch.setattr(machine, "CPU_MAX", tmp_path / "missing")
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "quota")
    monkeypatch.setattr(machine, "CPU_PERIOD", tmp_path / "period")
    assert container_cpus() == expected


def test_affinity_limits_cpus(tmp_path: Path, monkeypatch) -> None:
    """`taskset` gives a process some CPUs of a machine."""
    monkeypatch.setattr(machine, "CPU_MAX", tmp_path / "missing")
    monkeypatch.setattr(machine, "CPU_QUOTA", tmp_path / "missing")
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert available_cpus() == 1
    finally:
        os.sched_setaffinity(0, allowed)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert available_cpus() == os.cpu_count()
