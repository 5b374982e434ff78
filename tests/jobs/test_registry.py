import json
from pathlib import Path

import pytest

from imagemill.jobs.registry import headline, layers, show_checkpoint, show_registry
from imagemill.models import checkpoint
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.card import Card, CheckpointError
from imagemill.models.tasks import TASKS
from imagemill.pipeline.output.stored_checkpoint import store_checkpoint
from imagemill.pipeline.storage import StorageConfig, Store


def test_the_list_names_everything(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show_registry()
    shown = capsys.readouterr().out
    for name in (*TASKS, *ARCHITECTURES, *checkpoint.bundled_names()):
        assert name in shown
    assert "1,477" in shown


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_has_a_table_of_its_layers(name):
    model = ARCHITECTURES[name]()
    table = layers(model)
    assert f"Total params: {sum(p.numel() for p in model.parameters()):,}" in table
    assert all(n % model.stride == 0 for n in model.example[1:])


@pytest.mark.parametrize("name", checkpoint.bundled_names())
def test_a_card_is_shown_with_its_figures_and_their_set(name, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show_checkpoint(name, StorageConfig())
    shown = capsys.readouterr().out
    card = checkpoint.read_card(name)
    assert card.sha256 in shown
    for entry in card.metrics:
        assert entry["set"] in shown
    assert "Total params" in shown


def test_a_network_without_a_decoder_is_shown_by_its_name_and_where_a_run_kept_it(tmp_path, capsys):
    card, weights = checkpoint.read("random")
    kept = Store(str(tmp_path))
    store_checkpoint(kept, card, weights)
    for name in ("random", kept.uri(f"checkpoints/{card.sha256[:16]}")):
        show_checkpoint(name, StorageConfig())
        shown = capsys.readouterr().out
        assert card.sha256 in shown.replace("\n", "")
        assert "Total params" in shown


def test_measured_figures_replace_those_of_the_same_set_and_parameters(tmp_path: Path):
    source = Path(checkpoint.locate("denoise-small"))
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    before = checkpoint.read_card(str(tmp_path)).metrics
    for db in (30, 31):
        for params in ({}, {"params": {"tile": 3}}):
            checkpoint.write_metrics(str(tmp_path), {"set": "a", "images": 2, "headline": f"{db} dB", **params})
    card = checkpoint.read_card(str(tmp_path))
    assert card.metrics[: len(before)] == before
    assert [entry["headline"] for entry in card.metrics[len(before) :]] == ["31 dB", "31 dB"]
    checkpoint.read_weights(str(tmp_path), card)
    assert json.loads((tmp_path / "card.json").read_text())["metrics"] == card.metrics


def test_a_measured_set_is_the_headline_before_what_training_saw():
    seen = {"set": "held-out training images", "psnr_db": 30.0}
    measured = {"set": "kodak", "images": 24, "headline": "31.00 dB"}
    card = Card(name="x", task="denoise", architecture="unet", sha256="0", metrics=[seen])
    assert headline(card) == ("30.00 dB", "held-out training images")
    card = card.model_copy(update={"metrics": [seen, measured]})
    assert headline(card) == ("31.00 dB", "kodak, 24 images")


def test_a_card_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    source = Path(checkpoint.locate("denoise-small"))
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(checkpoint, "write_file", refuse)
    with pytest.raises(CheckpointError, match=r"card\.json cannot be written: PermissionError: read-only"):
        checkpoint.write_metrics(str(tmp_path), {"set": "a"})
