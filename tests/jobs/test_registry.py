"""`models` and `models show` list all entries, and their counts match the networks."""

import json
from pathlib import Path

import pytest

from imagemill.jobs.registry import headline, measure_layers, show_checkpoint, show_registry
from imagemill.models import checkpoint
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.models.tasks import TASKS
from imagemill.pipeline.output.stored_checkpoint import store_checkpoint
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig


def test_show_registry_names_everything(capsys):
    show_registry()
    stdout = capsys.readouterr().out
    for name in (*TASKS, *ARCHITECTURES, *checkpoint.bundled_names()):
        assert name in stdout
    assert "1,477" in stdout


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_measure_layers_counts_every_parameter(name):
    model = ARCHITECTURES[name]()
    layers, multiply_adds = measure_layers(model)
    assert sum(layer["parameters"] for layer in layers) == sum(p.numel() for p in model.parameters())
    assert multiply_adds > 0
    assert all(n % model.stride == 0 for n in model.example[1:])


@pytest.mark.parametrize("name", checkpoint.bundled_names())
def test_show_checkpoint_names_the_set_of_each_figure(name, capsys):
    show_checkpoint(name, StorageConfig())
    stdout = capsys.readouterr().out
    card = checkpoint.read_card(name)
    assert card.sha256 in stdout
    for entry in card.metrics:
        assert entry["set"] in stdout
    assert "multiply-adds" in stdout


def test_show_checkpoint_reads_a_stored_copy(tmp_path, capsys):
    """`models show` accepts a checkpoint's name and the folder in which a run stored its copy."""
    card, weights = checkpoint.read("random")
    output = Store(str(tmp_path))
    store_checkpoint(output, card, weights)
    for name in ("random", output.uri(f"checkpoints/{card.sha256[:16]}")):
        show_checkpoint(name, StorageConfig())
        assert card.sha256 in capsys.readouterr().out


def test_write_metrics_replaces_the_same_set_and_params(tmp_path: Path):
    source = Path(checkpoint.locate("denoise-small"))
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    old_metrics = checkpoint.read_card(str(tmp_path)).metrics
    for db in (30, 31):
        for params in ({}, {"params": {"tile": 3}}):
            checkpoint.write_metrics(str(tmp_path), {"set": "a", "images": 2, "headline": f"{db} dB", **params})
    card = checkpoint.read_card(str(tmp_path))
    assert card.metrics[: len(old_metrics)] == old_metrics
    assert [entry["headline"] for entry in card.metrics[len(old_metrics) :]] == ["31 dB", "31 dB"]
    checkpoint.read_weights(str(tmp_path), card)
    assert json.loads((tmp_path / "card.json").read_text())["metrics"] == card.metrics


def test_headline_prefers_evaluation_to_training():
    training = {"set": "held-out training images", "psnr_db": 30.0}
    evaluation = {"set": "kodak", "images": 24, "headline": "31.00 dB"}
    card = Card(name="x", task="denoise", architecture="unet", sha256="0", metrics=[training])
    assert headline(card) == ("30.00 dB", "held-out training images")
    card = card.model_copy(update={"metrics": [training, evaluation]})
    assert headline(card) == ("31.00 dB", "kodak, 24 images")


def test_write_metrics_reports_an_unwritable_card(tmp_path, monkeypatch):
    source = Path(checkpoint.locate("denoise-small"))
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(checkpoint, "write_file", refuse)
    with pytest.raises(CheckpointError, match=r"card\.json cannot be written: PermissionError: read-only"):
        checkpoint.write_metrics(str(tmp_path), {"set": "a"})
