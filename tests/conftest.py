"""S3 servers for tests: rclone (ignores conditional puts) and moto (honours them)."""

import os
import secrets
from collections.abc import Callable, Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s3fs
from hypothesis import settings
from PIL import Image

from imagemill.pipeline.storage import Store
from tests.support.servers import KEY, SECRET, environment_of, free_port, rclone

# A busy machine must not fail a property test.
settings.register_profile("imagemill", deadline=None)
settings.load_profile("imagemill")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that share a Ray, and run files with tests of Ray first, because they take longest."""
    for item in items:
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")
    files = {item.path for item in items if item.get_closest_marker("ray")}
    items.sort(key=lambda item: item.path not in files)


@pytest.fixture(params=["local", pytest.param("ray", marks=pytest.mark.ray)])
def engine(request: pytest.FixtureRequest) -> str:
    """Run a test on both engines. Pass the value to the config of the run."""
    if request.param == "ray":
        request.getfixturevalue("ray_session")
    return str(request.param)


@pytest.fixture(autouse=True)
def _local_engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run on the local engine, also on a machine with a GPU, and although another test of this process has started Ray."""
    if "ray_session" not in request.fixturenames:
        monkeypatch.setattr("imagemill.pipeline.machine.GPU_DEVICES", (Path("/no/GPU"), Path("/no/GPU")))
        monkeypatch.setattr("imagemill.pipeline.engines.selection.is_connected_to_ray", lambda: False)


@pytest.fixture(autouse=True)
def _without_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests compare tables of unlimited width, also when the environment of the suite has COLUMNS."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _service_models_are_read_once() -> Iterator[None]:
    """Keep botocore's description of S3 in memory, which each new client would read and parse again."""
    from botocore.loaders import JSONFileLoader

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JSONFileLoader, "load_file", cache(JSONFileLoader.load_file))
        yield


@pytest.fixture(scope="session")
def rclone_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the endpoint of an `rclone serve s3` over an empty folder."""
    server = rclone(tmp_path_factory.mktemp("rclone"), "--auth-key", f"{KEY},{SECRET}")
    try:
        server.start()
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.kill()


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """Return the endpoint of a moto server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", free_port(), verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def fresh_bucket(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> str:
    """Point the environment at an endpoint; return the s3:// URL of a new bucket there."""
    for key, value in environment_of(endpoint).items():
        monkeypatch.setenv(key, value)
    # s3fs caches instances by their arguments, which do not include the environment.
    s3fs.S3FileSystem.clear_instance_cache()
    url = f"s3://test-{secrets.token_hex(6)}"
    # Stores with the default config use the same client: each one takes a quarter of a second to create.
    Store(url).fs.mkdir(url)
    return url


@pytest.fixture
def rclone_bucket(rclone_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield fresh_bucket(monkeypatch, rclone_url)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def moto_bucket(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    yield fresh_bucket(monkeypatch, moto_url)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(params=["local", "moto", "rclone"])
def any_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a location for a Store: a folder, or a prefix of a bucket on each server."""
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue(f'{request.param}_bucket')}/store"


@pytest.fixture(scope="session")
def ray_session(rclone_url: str) -> Iterator[None]:
    """Start the Ray instance that all tests share; its workers can reach the rclone server.

    It has one CPU, so that a run starts one worker: tests mostly wait for processes to start. Commands that tests start as
    separate processes have all CPUs.
    """
    from imagemill.pipeline.cluster.connection import connected, ensure_token

    ensure_token()
    before = dict(os.environ)
    # Tests expect the figures of a CPU, even on a machine with a GPU.
    os.environ.update(environment_of(rclone_url) | {"CUDA_VISIBLE_DEVICES": ""})
    with connected(None, num_cpus=1):
        os.environ.clear()
        os.environ.update(before)
        yield


@pytest.fixture
def figure(request: pytest.FixtureRequest, record_property: Callable[[str, Any], None]) -> Callable[[str, str], None]:
    """Return figure(what, reached): it adds a line to the table that the session prints at its end."""
    test = request.node.nodeid.partition("[")[0]
    return lambda what, reached: record_property("figure", f"| {what} | {reached} | `{test}` |")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    passed = terminalreporter.stats.get("passed", [])
    lines = [line for report in passed for name, line in report.user_properties if name == "figure"]
    if lines:
        terminalreporter.write_line("\n| test | reached | by |\n|---|---|---|\n" + "\n".join(lines))


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Return different crops (96,128,3) uint8 of real photos."""
    source = files("skimage.data")
    photos = [
        np.asarray(Image.open(str(source.joinpath(f"{n}.png"))).convert("RGB")) for n in ("astronaut", "chelsea", "coffee")
    ]
    return [p[y : y + 96, x : x + 128] for p in photos for y in range(0, 200, 50) for x in range(0, 300, 75)]
