"""Runs over a bad connection lose and repeat no image and write the same output as an undisturbed run."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import StorageError
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.run_processes import made_without_faults, make_photos, outputs
from tests.support.servers import S3

IMAGES = [20, pytest.param(500, marks=pytest.mark.chaos)]
FAULTS = {
    "busy": "503",
    "reset": "resets",
    "lost": "lost acknowledgements",
    "corrupt_get": "of bodies corrupted on their way down",
    "corrupt_put": "on their way up",
}
LINE = {"busy": 0.2, "reset": 0.1, "lost": 0.05}
DAMAGE = {"corrupt_get": 0.05, "corrupt_put": 0.05}


@pytest.mark.usefixtures("short_waits")
@pytest.mark.parametrize("photos", IMAGES)
@pytest.mark.parametrize("faults", [LINE, DAMAGE], ids=["broken", "damaged"])
def test_run_over_a_bad_connection_is_complete(
    engine: str, s3: S3, tmp_path: Path, crops: list[np.ndarray], figure, faults: dict[str, float], photos: int
) -> None:
    source, output = s3.store("in"), s3.store("out")
    make_photos(source, photos, crops)
    s3.faults(seed=photos, **faults)
    places = {"input": source.url, "output": output.url, "storage": s3.storage}
    config = RunConfig(task="denoise", **places, rows_per_part=10, engine=engine)
    record = run(config)
    proxy_state = s3.seen()
    assert (record["ok"], record["rejected"]) == (photos, 0)
    assert all(proxy_state["counts"][name] for name in faults), proxy_state["counts"]
    assert proxy_state["swallowed"] == []
    assert [path for path in proxy_state["unmended"] if "/in/" in path] == []
    s3.faults()
    # Until a restart, rclone may list a renamed file under its old name; its bytes are safe.
    s3.behind.kill()
    s3.behind.start()
    verification = verify(output)
    assert verification.problems == []
    assert (verification.rows, verification.files) == (photos, photos)
    assert outputs(output) == made_without_faults(photos, tmp_path, crops)
    counts = ", ".join(f"{proxy_state['counts'][name]:,} {name}" for name in ("requests", *faults))
    figure(
        f"{engine}: {photos:,} images over S3 with "
        + ", ".join(f"{share:.0%} {FAULTS[name]}" for name, share in faults.items()),
        f"0 lost, 0 wrong outputs; the front counted {counts}",
    )

    s3.faults()
    assert run(config)["planned"] == 0
    assert s3.seen()["written"]
    assert not [path for path in s3.seen()["written"] if not path.startswith("/bucket/out/runs/")]


def test_run_after_refused_writes_completes_the_output(engine: str, s3: S3, crops: list[np.ndarray], figure) -> None:
    source, output = s3.store("in"), s3.store("out")
    make_photos(source, 20, crops)
    s3.faults(forbid="/out/images/3/")
    places = {"input": source.url, "output": output.url, "storage": s3.storage}
    config = RunConfig(task="denoise", **places, rows_per_part=5, engine=engine)
    with pytest.raises(StorageError, match=r"/out.*Run the same command again") as error_info:
        run(config)
    assert error_info.value.exit_code == 5
    assert s3.seen()["counts"]["forbid"]
    s3.faults()
    run(config)
    verification = verify(output)
    assert (verification.problems, verification.rows, verification.files) == ([], 20, 20)
    figure(f"{engine}: permission lost in the middle", "exit 5, the rerun completes 20 of 20")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return small_disk(size), which returns a folder on a disk of that size and can resize it later."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: str) -> Path:
        remount = ["-o", f"remount,size={size}"] if folder.is_mount() else ["-t", "tmpfs", "-o", f"size={size}", "tmpfs"]
        if subprocess.run(["mount", *remount, str(folder)], capture_output=True).returncode:
            pytest.skip("mounting a disk takes root")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.chaos
def test_run_after_a_full_disk_completes_the_output(
    engine: str, small_disk, tmp_path: Path, crops: list[np.ndarray], figure
) -> None:
    source, output = Store(str(tmp_path / "in")), Store(str(small_disk("2m") / "out"))
    make_photos(source, 100, crops)
    config = RunConfig(task="denoise", input=source.url, output=output.url, rows_per_part=10, engine=engine)
    with pytest.raises(
        StorageError, match=r"No space left on device\. Committed rows stay\. Run the same command again$"
    ) as full:
        run(config)
    assert full.value.exit_code == 5
    small_disk("20m")
    run(config)
    assert not [e.path for e in output.entries() if e.path.endswith(".tmp")]
    verification = verify(output)
    assert (verification.problems, verification.rows, verification.files) == ([], 100, 100)
    figure(f"{engine}: disk full", "exit 5, the rerun completes 100 of 100")
