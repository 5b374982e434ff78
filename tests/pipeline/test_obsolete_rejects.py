"""A reject waits for a retry only while its image is in the input."""

from pathlib import Path

import numpy as np
import pytest

from imagemill.jobs.failures import show_failures
from imagemill.jobs.status import show_status
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.output.rejects import read_waiting_rejects
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.shards import pictures, shard

BROKEN = b"this is no picture"


@pytest.fixture
def places(tmp_path: Path, crops: list[np.ndarray]) -> tuple[Path, Store]:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.png").write_bytes(pictures(crops, 1)[0])
    return tmp_path / "in", Store(str(tmp_path / "out"))


def run_denoise(source: Path, output: Store, /, **options: object) -> dict:
    return run(RunConfig(task="denoise", input=str(source), output=output.url, max_reject_fraction=1, **options))


def read_waiting_paths(output: Store) -> set[str]:
    return set(read_waiting_rejects(output, ["rel_path"])["rel_path"].to_pylist())


def test_reject_of_a_removed_file_is_obsolete(places, capsys):
    source, output = places
    for name in ("bad.png", "worse.png"):
        (source / name).write_bytes(BROKEN)
    assert run_denoise(source, output)["rejected"] == 2
    (source / "bad.png").unlink()
    record = run_denoise(source, output)
    assert (record["planned"], record["rejects_waiting"]) == (0, 1)
    assert read_waiting_paths(output) == {"worse.png"}
    show_status(output)
    show_failures(output)
    out = capsys.readouterr().out
    assert "rejects: 1 permanent (processed again with --retry-failed)" in out
    assert "worse.png" in out
    assert "bad.png" not in out
    (source / "worse.png").unlink()
    assert run_denoise(source, output)["rejects_waiting"] == 0
    show_status(output)
    assert "rejects: none" in capsys.readouterr().out
    config = RunConfig(task="denoise", input=str(source), output=output.url)
    assert build_plan(resolve(config)).rejects_waiting == 0

    # The same file comes back, and its reject is waiting again.
    (source / "bad.png").write_bytes(BROKEN)
    record = run_denoise(source, output)
    assert read_waiting_paths(output) == {"bad.png"}
    assert run_denoise(source, output, retry_failed=True)["rejected"] == 1
    assert read_waiting_paths(output) == {"bad.png"}


def test_reject_stays_when_another_input_is_run(places, tmp_path, crops):
    """With two inputs for one output, a run over one input keeps rejects of the other."""
    source, output = places
    (source / "bad.png").write_bytes(BROKEN)
    run_denoise(source, output)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/b.png").write_bytes(pictures(crops, 2)[1])
    (tmp_path / "other/worse.png").write_bytes(BROKEN)
    run_denoise(tmp_path / "other", output)
    assert read_waiting_paths(output) == {"bad.png", "worse.png"}
    (source / "bad.png").unlink()
    run_denoise(source, output)
    assert read_waiting_paths(output) == {"worse.png"}
    # A run that was killed left only its config.
    for folder in (tmp_path / "out/runs").iterdir():
        (folder / "run.json").unlink(missing_ok=True)
    run_denoise(source, output)
    assert read_waiting_paths(output) == {"worse.png"}


def test_reject_of_a_repaired_shard_is_obsolete(places, crops):
    source, output = places
    shard(source / "s.tar", {"0.png": pictures(crops, 2)[1], "1.png": BROKEN})
    tar_bytes = (source / "s.tar").read_bytes()
    (source / "s.tar").write_bytes(tar_bytes + b"what somebody wrote behind it" * 20)
    assert run_denoise(source, output)["reasons"] == {"BadShard": 1, "UnknownFormat": 1}
    (source / "s.tar").write_bytes(tar_bytes)
    run_denoise(source, output)
    assert read_waiting_paths(output) == {"s.tar/1.png"}


def test_obsolete_rejects_ignore_unreadable_shards(places, crops, monkeypatch):
    source, output = places
    shard(source / "s.tar", {"0.png": pictures(crops, 2)[1], "1.png": BROKEN})
    run_denoise(source, output)
    for index in Path(output.full("shards")).iterdir():
        index.unlink()

    def raise_permission_error(*_: object) -> None:
        raise PermissionError("not now")

    monkeypatch.setattr("imagemill.pipeline.sources.tar.open_decompressed", raise_permission_error)
    run_denoise(source, output)
    assert read_waiting_paths(output) == {"s.tar", "s.tar/1.png"}


def test_obsolete_rejects_ignore_cut_and_missing_shards(places, crops):
    source, output = places
    shard(source / "s.tar", {"0.png": pictures(crops, 2)[1], "1.png": BROKEN})
    run_denoise(source, output)
    whole = (source / "s.tar").read_bytes()
    (source / "s.tar").write_bytes(whole[:512])
    assert run_denoise(source, output)["reasons"] == {"CutShard": 1}
    assert read_waiting_paths(output) == {"s.tar", "s.tar/1.png"}
    # The disk that holds the shard is not mounted.
    (source / "s.tar").unlink()
    (source / "s.tar").symlink_to(source.parent / "disk/s.tar")
    assert run_denoise(source, output)["reasons"] == {"UnreadableShard": 1}
    assert read_waiting_paths(output) == {"s.tar", "s.tar/1.png"}
    (source.parent / "disk").mkdir()
    (source.parent / "disk/s.tar").write_bytes(whole)
    run_denoise(source, output, source={"include": ["*.png"]})
    assert read_waiting_paths(output) == {"s.tar/1.png"}
