import hashlib
import json
import pickle
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from imagemill.models import checkpoint
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.architectures.conv import Conv
from imagemill.models.card import Card
from imagemill.models.checkpoint import CARD, WEIGHTS, build, bundled_names, read_card, read_weights, save
from imagemill.models.entropy_fitting import fit_entropy_model
from imagemill.models.errors import CheckpointError

CARD_OF_CONV: dict[str, Any] = {"name": "tiny", "task": "denoise", "architecture": "conv", "parameters": {"width": 8}}


def load(url: str, options: dict[str, Any] | None = None) -> Any:
    card = read_card(url, options)
    return build(card, read_weights(url, card, options))


def error_message_of(action: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as error_info:
        action()
    message = str(error_info.value)
    assert message
    assert "\n" not in message
    return message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save(str(tmp_path / "deep" / "tiny"), Conv(width=8), CARD_OF_CONV)
    return tmp_path / "deep" / "tiny"


def rewrite(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / CARD).read_text()) | changes
    (folder / CARD).write_text(json.dumps(card))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_save_and_load_keep_the_model(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    card = save(str(tmp_path / "m"), model, {"name": "m", "task": "t", "architecture": name})
    loaded_model = load(str(tmp_path / "m"))
    assert type(loaded_model) is type(model)
    assert not loaded_model.training
    assert loaded_model.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert loaded_model.state_dict()[key].dtype == torch.float32
        torch.testing.assert_close(loaded_model.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert read_card(str(tmp_path / "m")) == card
    assert card.sha256 == hashlib.sha256((tmp_path / "m" / WEIGHTS).read_bytes()).hexdigest()


def test_save_and_load_keep_entropy_tables(tmp_path: Path) -> None:
    model = Conv(width=8)
    model.entropy = fit_entropy_model(
        [np.random.default_rng(n).integers(-9, 10, (4, 7, 7)).astype(np.int8) for n in range(3)]
    )
    save(str(tmp_path), model, CARD_OF_CONV)
    loaded_model = load(str(tmp_path)).entropy
    for name, value in model.entropy.state_dict().items():
        assert loaded_model.state_dict()[name].dtype == value.dtype
        assert torch.equal(loaded_model.state_dict()[name], value)


@pytest.mark.parametrize("name", ["sizes", "weights", "bias", "edges", "tables"])
def test_build_refuses_damaged_entropy_tables(tmp_path: Path, name: str) -> None:
    model = Conv(width=8)
    model.entropy = fit_entropy_model([np.ones((4, 7, 7), np.int8)])
    card = save(str(tmp_path), model, CARD_OF_CONV)
    state = safetensors.torch.load((tmp_path / WEIGHTS).read_bytes())
    for bad_state in ({name: state[f"entropy.{name}"][:-1]}, {name: state[f"entropy.{name}"].half()}, {}):
        other_state = {key: value for key, value in state.items() if key != f"entropy.{name}"}
        damaged = safetensors.torch.save(
            other_state | {f"entropy.{key}": value.contiguous() for key, value in bad_state.items()}
        )
        assert "do not fit" in error_message_of(lambda damaged=damaged: build(card, damaged))


def test_save_is_deterministic(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Conv(width=8)
    assert save(str(tmp_path / "a"), model, CARD_OF_CONV) == save(str(tmp_path / "b"), model, CARD_OF_CONV)


def test_card_keeps_its_fields(tmp_path: Path) -> None:
    facts = {
        "training": {"steps": 10, "data": "Fotos für alle"},
        "metrics": [{"psnr_db": 30.5}],
        "preprocessing": {"gray": True},
    }
    save(str(tmp_path), Conv(width=8), CARD_OF_CONV | facts)
    card = read_card(str(tmp_path)).model_dump()
    assert {k: card[k] for k in facts} == facts
    assert "Fotos für alle" in (tmp_path / CARD).read_text(encoding="utf-8")


def test_checkpoint_can_be_in_a_bucket(moto_bucket: str) -> None:
    url = f"{moto_bucket}/models/tiny"
    torch.manual_seed(0)
    model = Conv(width=8)
    save(url, model, CARD_OF_CONV)
    torch.testing.assert_close(load(url).state_dict(), model.state_dict(), rtol=1e-3, atol=1e-4)
    assert "card.json is missing" in error_message_of(lambda: read_card(f"{moto_bucket}/models/none"))


def test_locate_takes_file_urls(folder: Path) -> None:
    assert load(f"file://{folder}/").state_dict().keys() == Conv(width=8).state_dict().keys()


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_checkpoints_are_small_and_load(name: str) -> None:
    assert read_card(name).name == name
    assert read_card(name).data
    assert isinstance(load(name), ARCHITECTURES[read_card(name).architecture])
    assert (checkpoint.BUNDLED_FOLDER / name / WEIGHTS).stat().st_size < 6_000_000


def test_load_refuses_weights_of_another_digest(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    message = error_message_of(lambda: load(str(folder)))
    assert "sha256" in message
    assert str(folder) in message


def test_write_metrics_is_atomic(folder: Path) -> None:
    old_card = (folder / CARD).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The limit simulates a disk that becomes full in the middle of a write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(old_card) // 2, hard))
    try:
        message = error_message_of(lambda: checkpoint.write_metrics(str(folder), {"set": "a"}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "card.json cannot be written" in message
    assert (folder / CARD).read_bytes() == old_card
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
def test_load_names_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing" in error_message_of(lambda: load(str(folder)))
    assert f"{name} is missing" in error_message_of(lambda: load(f"file://{folder}"))


def test_card_names_an_unknown_key(folder: Path) -> None:
    rewrite(folder, colour="red")
    message = error_message_of(lambda: load(str(folder)))
    assert "colour" in message
    assert CARD in message


def test_card_names_a_missing_key(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    del card["sha256"]
    (folder / CARD).write_text(json.dumps(card))
    assert "sha256" in error_message_of(lambda: load(str(folder)))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"name": 3}'])
def test_read_card_refuses_invalid_json(folder: Path, text: bytes) -> None:
    (folder / CARD).write_bytes(text)
    assert CARD in error_message_of(lambda: read_card(str(folder)))


@pytest.mark.parametrize("extension", [".pt", ".pth", ".pkl", ".ckpt", ".bin", ".PT", ".pickle"])
def test_locate_refuses_pickles_by_name(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"model{extension}"
    path.write_bytes(pickle.dumps({}))
    assert "pickled weights are refused" in error_message_of(lambda: read_card(str(path)))


def test_load_refuses_a_pickle_named_safetensors(folder: Path) -> None:
    torch.save(Conv(width=8).state_dict(), folder / WEIGHTS)
    rewrite(folder, sha256=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())
    assert "do not fit conv" in error_message_of(lambda: load(str(folder)))


@pytest.mark.parametrize(
    "url", ["http://host/model", "https://host/model", "ftp://host/model", "gs://b/model", "zip::s3://b/m"]
)
def test_locate_refuses_other_schemes(url: str) -> None:
    assert "Valid: file, s3" in error_message_of(lambda: read_card(url))


@pytest.mark.parametrize("name", ["nothing-like-this", "../checkpoints/nothing", "/nowhere/at/all", "", "s3"])
def test_locate_lists_valid_names_for_an_unknown_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    message = error_message_of(lambda: read_card(name))
    assert all(bundled_name in message for bundled_name in bundled_names()) or CARD in message


def test_locate_refuses_a_file(folder: Path) -> None:
    error_message_of(lambda: read_card(str(folder / WEIGHTS)))
    error_message_of(lambda: read_card(f"file://{folder / WEIGHTS}"))


def test_build_lists_valid_architectures(folder: Path) -> None:
    rewrite(folder, architecture="transformer")
    message = error_message_of(lambda: load(str(folder)))
    assert all(name in message for name in ("transformer", *ARCHITECTURES))


@pytest.mark.parametrize(
    ("architecture", "parameters"),
    [
        ("conv", {"width": 9}),
        ("conv", {"depth": 3}),
        ("conv", {"width": "eight"}),
        ("conv", {"width": -1}),
        ("conv", {"width": 0}),
        ("conv", {"width": 8.5}),
        ("conv", {"width": None}),
        ("unet", {}),
        ("unet", {"widths": []}),
        ("unet", {"widths": 32}),
        ("unet", {"widths": [0, 0]}),
        ("unet", {"blocks": -1}),
        ("masked", {"blocks": [1, 2]}),
        ("codec", {}),
        ("codec", {"chroma": 1000}),
        ("codec", {"blocks": 1.5}),
        ("edsr", {}),
        ("edsr", {"scale": 0}),
        ("edsr", {"scale": 1.5}),
    ],
)
def test_build_refuses_wrong_parameters(folder: Path, architecture: str, parameters: dict[str, Any]) -> None:
    card = Card(**CARD_OF_CONV | {"architecture": architecture, "parameters": parameters}, sha256="")
    message = error_message_of(lambda: build(card, (folder / WEIGHTS).read_bytes()))
    assert "tiny" in message
    assert architecture in message
