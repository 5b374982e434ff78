"""Runs after other runs: restored parameters, lasting rejects, interrupted runs."""

import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from imagemill.jobs.failures import show_failures
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.lease import FOLDER
from imagemill.pipeline.output.parts import SUPERSEDED, list_parts
from imagemill.pipeline.output.verify import verify
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.resolve import build_plan, resolve
from imagemill.pipeline.run import run
from imagemill.pipeline.schema import image_id
from imagemill.pipeline.storage import Store


@pytest.fixture
def config(tmp_path: Path, crops: list[np.ndarray]) -> RunConfig:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, crop in enumerate(crops[:4]):
        Image.fromarray(crop).save(folder / f"{number}.png")
    return RunConfig(task="denoise", input=str(folder), output=str(tmp_path / "out"), engine="local")


def test_run_repeats_parameters_that_come_back(config):
    for sigma in (15, 50):
        assert run(config.model_copy(update={"params": {"sigma": sigma}}))["ok"] == 4
    second_record = run(config.model_copy(update={"params": {"sigma": 15}}))
    assert second_record["ok"] == 4
    assert verify(Store(config.output)).problems == []
    assert build_plan(resolve(config.model_copy(update={"params": {"sigma": 15}}))).done == 4


def test_interrupted_run_images_are_processed_again(config):
    first = run(config)
    row = {"image_id": [image_id("0.png")], "fence": [first["fence"] + 1]}
    Store(config.output).write(f"runs/killed/{SUPERSEDED}", parquet_bytes(pa.table(row), 1))
    (Path(config.output) / "images/0.png").write_bytes(b"what the killed run wrote")
    assert run(config)["planned"] == 1
    assert verify(Store(config.output)).problems == []
    assert run(config)["planned"] == 0


def test_interrupted_run_recovers_without_claims(config):
    first = run(config)
    row = {"image_id": [image_id("0.png")], "fence": [first["fence"] + 3]}
    Store(config.output).write(f"runs/killed/{SUPERSEDED}", parquet_bytes(pa.table(row), 1))
    shutil.rmtree(f"{config.output}/{FOLDER}")
    assert run(config)["planned"] == 1
    assert run(config)["planned"] == 0


def test_verify_names_missing_parts_and_checkpoint(config, monkeypatch, tmp_path):
    monkeypatch.setattr("imagemill.pipeline.output.compact.MIN_SMALL_PARTS", 2)
    (Path(config.input) / "broken.png").write_bytes(b"broken")
    output, lenient = Store(config.output), config.model_copy(update={"max_reject_fraction": 1.0})
    for sigma in (15, 50, 15):
        run(lenient.model_copy(update={"params": {"sigma": sigma}}))
    run(lenient.model_copy(update={"params": {"sigma": 15}, "retry_failed": True}))
    assert verify(output).problems == []
    parts = list_parts(output, "results")
    for path in parts:
        shutil.move(output.full(path), tmp_path)
    assert verify(output).problems[0].startswith("results/: 8 of the 8 rows of run ")
    for path in parts[1:]:
        shutil.move(tmp_path / Path(path).name, output.full(path))
    [problem] = verify(output).problems
    assert "are missing. Copy the parts again, or run again" in problem
    run(lenient.model_copy(update={"params": {"sigma": 15}}))
    assert verify(output).problems == []
    shutil.rmtree(f"{output.root}/checkpoints")
    [problem] = verify(output).problems
    assert re.search(r"the checkpoint that made the rows is missing \(\d rows\)", problem)


def test_reject_may_be_rejected_again(config):
    (Path(config.input) / "broken.png").write_bytes(b"broken")
    os.symlink("/nowhere", Path(config.input) / "dangling.png")
    os.mkfifo(Path(config.input) / "pipe.png")
    lenient = config.model_copy(update={"max_reject_fraction": 1.0})
    assert run(lenient)["rejected"] == 3
    for _ in range(2):
        record = run(lenient.model_copy(update={"retry_failed": True}))
        assert (record["planned"], record["rejected"]) == (3, 3)


def test_failures_omit_repaired_files_and_show_plain_names(config, capsys):
    broken_path = Path(config.input) / "IMG [edited] [b].png"
    broken_path.write_bytes(b"broken")
    run(config)
    show_failures(Store(config.output))
    assert "[edited]" in capsys.readouterr().out
    show_failures(Store(config.output), by_reason=True)
    assert re.search(r"decode +UnknownFormat +1 +--retry-failed or new file +IMG \[edited\]", capsys.readouterr().out)
    for name in ("r.csv", "r.jsonl", "r.parquet"):
        path = str(Path(config.output).parent / name)
        show_failures(Store(config.output), export=path)
        table = {"csv": pd.read_csv, "jsonl": partial(pd.read_json, lines=True), "parquet": pd.read_parquet}[name[2:]](path)
        assert table["rel_path"].tolist() == [broken_path.name]
    with pytest.raises(ConfigError, match=r"r\.xlsx"):
        show_failures(Store(config.output), export="r.xlsx")
    Image.new("RGB", (32, 32)).save(broken_path)
    run(config)
    show_failures(Store(config.output))
    assert "no rejects" in capsys.readouterr().out
