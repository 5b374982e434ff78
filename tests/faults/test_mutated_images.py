"""Real workers turn each damaged or hostile file into a row or a reject, and nothing crashes."""

import time
from pathlib import Path

import pytest

from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.run import run
from imagemill.pipeline.storage import Store
from tests.support.mutations import bombs, mutations

ACTOR_MB = 1000


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.chaos)])
def test_mutated_images_become_rows_or_rejects(tmp_path: Path, crops, figure, count: int) -> None:
    source, output = Store(str(tmp_path / "in")), Store(str(tmp_path / "out"))
    files = dict(bombs()) | dict(mutations(crops, count))
    for name, data in files.items():
        source.write(name, data)
    config = RunConfig(
        task="denoise",
        input=source.url,
        output=output.url,
        max_pixels=1_000_000,
        max_reject_fraction=1,
        pool={"workers": 1},
        engine="local",
    )
    record = run(config)
    assert record["planned"] == record["ok"] + record["rejected"] == len(files)
    assert record["ok"] > count / 10
    assert record["rejected"] > count / 10
    assert "KilledProcess" not in record["reasons"]
    assert record["peak_rss_mb"]["actor"] < ACTOR_MB
    rejects = read_parts(output, list_parts(output, "rejects"), ["rel_path", "stage", "error_class", "error", "transient"])
    assert all(row["error_class"] and row["error"] for row in rejects.to_pylist())
    assert not [row for row in rejects.to_pylist() if row["transient"]]
    verification = verify(output)
    assert (verification.problems, verification.rows) == ([], record["ok"])
    peak, idle = (record["peak_rss_mb"][key] for key in ("actor", "idle_actor"))
    figure(
        f"{len(files):,} mutated images and decompression bombs",
        f"0 crashes: {record['ok']:,} ok, {record['rejected']:,} rejected with a reason; actor {peak} MB, idle {idle} MB",
    )

    # A second run processes no image and writes only its run record.
    first_etags = {e.path: e.etag for e in output.entries() if not e.path.startswith("runs/")}
    start_s = time.process_time()
    repeat_record = run(config)
    seconds = time.process_time() - start_s
    assert (repeat_record["planned"], repeat_record["found"]) == (0, len(files))
    assert {e.path: e.etag for e in output.entries() if not e.path.startswith("runs/")} == first_etags
    assert seconds < 10
    figure(
        f"rerun of a finished run of {len(files):,} images",
        f"0 data writes, {repeat_record['seconds']['total']:.1f} s beyond start-up ({seconds:.1f} s of CPU)",
    )
