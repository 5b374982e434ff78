"""RunRecord: the keys of run.json."""

import json

from imagemill.pipeline.run_record import RunRecord


def test_run_record_leaves_out_what_is_not_known() -> None:
    assert RunRecord().content() == {}
    record = RunRecord(run_id="r", fence=3, ok=0, quality={}, seconds={"plan": 1.0})
    assert record.content() == {"run_id": "r", "seconds": {"plan": 1.0}, "fence": 3, "ok": 0, "quality": {}}
    assert json.loads(record.to_json()) == record.content()


def test_run_record_gives_the_lineage_of_rows() -> None:
    record = RunRecord(
        run_id="r", task="denoise", model_id="m", checkpoint_sha256="c", config_sha256="d", parameters="{}", fence=7
    )
    assert record.lineage() == {
        "task": "denoise",
        "model_id": "m",
        "checkpoint_sha256": "c",
        "config_sha256": "d",
        "parameters": "{}",
        "run_id": "r",
        "fence": 7,
    }


def test_run_record_times_a_stage() -> None:
    record = RunRecord()
    with record.timed("plan"):
        pass
    assert 0 <= record.seconds["plan"] < 5
