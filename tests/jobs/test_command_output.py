"""Read-only commands print every value in full at any width, and `--json` prints one documented object."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from imagemill.jobs.registry import headline
from imagemill.models import checkpoint
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.tasks import TASKS
from imagemill.pipeline.output.snapshot import read_snapshot
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import image_id, part_name, reject_schema
from imagemill.pipeline.storage import Store
from tests.support.outputs import compressed

FOLDER = "a folder with a name of some length/" * 3
CLASS = "UnsupportedTransferFunctionInEmbeddedProfile"
REASON = "the profile has a curve of type 7, and 0 to 4 are supported; convert the image to sRGB, or delete its profile"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory, crops: list[np.ndarray]) -> Store:
    """Return an output of two runs with paths over 100 characters, one near copy and two rejects."""
    folder = tmp_path_factory.mktemp("long") / FOLDER
    images = {f"{FOLDER}{n}.png": crops[n] for n in range(3)}
    images[f"{FOLDER}near copy.png"] = (crops[0] * 0.98).astype(np.uint8)
    compressed(folder, {f"{FOLDER}old.png": crops[9]}, "compress-small", fence=1)
    output = compressed(folder, images, "compress-small", fence=2)
    rows = [
        {
            "image_id": image_id(name),
            "rel_path": name,
            "version": "v",
            "fence": 2,
            "stage": "decode",
            "error_class": CLASS,
            "error": REASON,
            "transient": name.startswith("t"),
            "attempts": 1,
        }
        for name in (f"{FOLDER}bad.png", f"t/{FOLDER}slow.png")
    ]
    part = pa.Table.from_pylist(rows, reject_schema())
    output.write(f"rejects/{part_name(part)}", parquet_bytes(part, 1))
    return output


def run_names(output: Store) -> list[str]:
    """Return the runs of an output, oldest first."""
    return sorted(path.name for path in Path(f"{output.url}/runs").iterdir() if path.name.startswith("2"))


@pytest.mark.parametrize("width", ["60", "80", ""])
def test_commands_show_long_values_whole(output, imagemill, tmp_path, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    first, last = run_names(output)
    copy = [f"{FOLDER}0.png", f"{FOLDER}near copy.png"]
    query = ["--id", copy[0], "--sheet", tmp_path / "sheet.png"]
    figures = [headline(checkpoint.read_card(name))[0] for name in checkpoint.bundled_names()]
    dest = tmp_path / FOLDER / "dest"
    for arguments, expected in (
        (["status", output.url], [first, last]),
        (["verify", output.url], ["5 images, 5 rows, 2 reject rows"]),
        (["failures", output.url], [f"\n{name}: {CLASS}: {REASON}\n" for name in (f"t/{FOLDER}slow.png",)]),
        (["failures", output.url, "--by-reason"], [CLASS, REASON, f"{FOLDER}bad.png"]),
        (["failures", output.url, "--export", tmp_path / "rejects.csv"], [f"{tmp_path}/rejects.csv\n"]),
        (["stats", output.url], [first, last]),
        (["stats", output.url, "--against", first], [f"{last} (4 images) compared with {first} (1 image):"]),
        (["search", output.url, *query], [copy[1], f"{FOLDER}2.png", f"{tmp_path}/sheet.png\n"]),
        (["duplicates", output.url], copy),
        (["report", output.url], [f"{output.url}/runs/{last}/report.html\n"]),
        (["export", output.url, dest], [f"{dest}/latents\n"]),
        (["decode", output.url, tmp_path / FOLDER / "images"], [f"{tmp_path / FOLDER}/images\n"]),
        (["map", output.url, tmp_path / "map.html"], [f"{tmp_path}/map.html"]),
        (["models"], [*TASKS, *ARCHITECTURES, *checkpoint.bundled_names(), *figures]),
        (["models", "show", "compress-small"], [checkpoint.read_card("compress-small").sha256, *figures[1:2]]),
    ):
        code, out, _ = imagemill(*arguments)
        assert code == 0, arguments
        for text in expected:
            assert text in out, (arguments, text, out)


def test_failures_prints_one_reject_per_line(output, imagemill, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    lines = imagemill("failures", output.url)[1].splitlines()
    assert lines == [f"{name}: {CLASS}: {REASON}" for name in (f"{FOLDER}bad.png", f"t/{FOLDER}slow.png")]


def parse(result: tuple[int, str, str], exit_code: int = 0) -> dict[str, object]:
    """Parse stdout, which must be exactly one JSON object, and check the exit code."""
    code, out, _ = result
    assert code == exit_code
    content: dict[str, object] = json.loads(out)
    return content


def test_status_json_has_its_keys(output, imagemill):
    content = parse(imagemill("status", output.url, "--json"))
    runs = content.pop("runs")
    assert content == {
        "output": output.url,
        "images": 5,
        "rows": 5,
        "parts": len(read_snapshot(output).parts),
        "images_pending": 0,
        "rejects_permanent": 1,
        "rejects_transient": 1,
        "prefixes": {},
        "lease": None,
    }
    assert [run["run_id"] for run in runs] == run_names(output)
    assert runs[0] == {
        "run_id": run_names(output)[0],
        "planned": 1,
        "ok": 1,
        "rejected": None,
        "images_per_s": None,
        "exit_code": None,
        "exit_reason": "done",
    }


def test_status_json_tells_whether_a_run_is_alive(imagemill, tmp_path, monkeypatch):
    monkeypatch.setattr("imagemill.jobs.status.WATCH_SECONDS", 0.1)
    monkeypatch.setattr("imagemill.pipeline.output.lease.POLL_SECONDS", 0.05)
    claim = tmp_path / "out/runs/lease/00000001.json"
    claim.parent.mkdir(parents=True)
    claim.write_text('{"machine": "far/1", "pid": 7, "started": "1", "at": 4e9}')
    content = parse(imagemill("status", tmp_path / "out", "--json"))
    assert content["lease"] == {"holder": "process 7 on far", "is_alive": False, "heartbeat_age_s": None}
    assert content["runs"] == []


def test_failures_json_has_its_keys(output, imagemill):
    content = parse(imagemill("failures", output.url, "--json"))
    assert list(content) == ["output", "count", "rejects"]
    assert content["count"] == 2
    keys = "image_id source_uri rel_path stage error_class error transient attempts run_id"
    assert list(content["rejects"][0]) == keys.split()
    content = parse(imagemill("failures", output.url, "--by-reason", "--json"))
    [reason] = content["reasons"]
    example = {"example": f"{FOLDER}bad.png", "error": REASON}
    assert reason == {"stage": "decode", "error_class": CLASS, "count": 2, "transient": True, **example}


def test_verify_json_lists_problems_and_exits_6(output, imagemill, tmp_path, crops):
    content = parse(imagemill("verify", output.url, "--json"))
    counts = {"images": 5, "rows": 5, "reject_rows": 2, "files": 0, "latents": 5, "images_pending": 0}
    assert content == {"output": output.url, **counts, "problems": []}
    damaged_output = compressed(tmp_path, {"a.png": crops[0][:28, :28]})
    [part] = Path(f"{damaged_output.url}/results").iterdir()
    part.write_bytes(b"damaged")
    [problem] = parse(imagemill("verify", damaged_output.url, "--json"), exit_code=6)["problems"]
    assert part.name in problem


def test_models_json_has_its_keys(imagemill):
    content = parse(imagemill("models", "--json"))
    assert [task["name"] for task in content["tasks"]] == list(TASKS)
    assert list(content["tasks"][0]) == ["name", "description", "parameters", "default_checkpoint"]
    assert [row["name"] for row in content["architectures"]] == list(ARCHITECTURES)
    assert list(content["architectures"][0]) == ["name", "description", "parameters", "stride", "trains"]
    assert [row["name"] for row in content["checkpoints"]] == checkpoint.bundled_names()
    keys = ["name", "task", "architecture", "parameters", "bytes", "headline", "measured_on"]
    assert list(content["checkpoints"][0]) == keys
    content = parse(imagemill("models", "show", "conv-mnist", "--json"))
    assert content["parameter_count"] == 1477
    assert list(content["layers"][0]) == ["name", "type", "output", "parameters"]


def test_stats_json_has_its_keys(output, imagemill):
    first, last = run_names(output)
    content = parse(imagemill("stats", output.url, "--json"))
    assert list(content) == ["output", "runs"]
    assert [(run["run_id"], run["images"]) for run in content["runs"]] == [(first, 1), (last, 4)]
    assert list(content["runs"][0]) == ["run_id", "images", "channels", "mean", "deviation", "distance", "chance"]
    assert content["runs"][0]["distance"] is None
    assert content["runs"][1]["distance"] > 0
    content = parse(imagemill("stats", output.url, "--against", first, "--json"))
    assert (content["run_id"], content["against"], content["against_images"]) == (last, first, 1)
    assert len(content["channels"]) == 96
    assert None not in content["channels"][0].values()
    content = parse(imagemill("stats", output.url, "--run-id", last, "--json"))
    assert content["against"] is content["distance"] is content["channels"][0]["against_mean"] is None


def test_json_is_empty_when_the_output_is_missing(imagemill, tmp_path):
    for command in ("status", "failures", "verify", "stats"):
        code, out, err = imagemill(command, tmp_path / "nowhere", "--json")
        assert (code, out, err.count("\n")) == (5, "", 1)
