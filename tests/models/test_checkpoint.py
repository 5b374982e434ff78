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
from imagemill.models.card import Card, CheckpointError
from imagemill.models.checkpoint import CARD, WEIGHTS, build, bundled_names, read_card, read_weights, save
from imagemill.models.entropy_fitting import fit_entropy_model

CARD_OF_CONV: dict[str, Any] = {"name": "tiny", "task": "denoise", "architecture": "conv", "parameters": {"width": 8}}


def load(url: str, options: dict[str, Any] | None = None) -> Any:
    card = read_card(url, options)
    return build(card, read_weights(url, card, options))


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        action()
    message = str(caught.value)
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
def test_a_model_comes_back_as_it_was_saved(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = ARCHITECTURES[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    card = save(str(tmp_path / "m"), model, {"name": "m", "task": "t", "architecture": name})
    back = load(str(tmp_path / "m"))
    assert type(back) is type(model)
    assert not back.training
    assert back.state_dict().keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        assert back.state_dict()[key].dtype == torch.float32
        torch.testing.assert_close(back.state_dict()[key], value, rtol=1e-3, atol=1e-4)
    assert read_card(str(tmp_path / "m")) == card
    assert card.sha256 == hashlib.sha256((tmp_path / "m" / WEIGHTS).read_bytes()).hexdigest()


def test_tables_for_coding_come_back_whole(tmp_path: Path) -> None:
    model = Conv(width=8)
    model.entropy = fit_entropy_model(
        [np.random.default_rng(n).integers(-9, 10, (4, 7, 7)).astype(np.int8) for n in range(3)]
    )
    save(str(tmp_path), model, CARD_OF_CONV)
    back = load(str(tmp_path)).entropy
    for name, value in model.entropy.state_dict().items():
        assert back.state_dict()[name].dtype == value.dtype
        assert torch.equal(back.state_dict()[name], value)


@pytest.mark.parametrize("name", ["sizes", "weights", "bias", "edges", "tables"])
def test_tables_that_are_damaged_or_not_all_there_are_refused(tmp_path: Path, name: str) -> None:
    model = Conv(width=8)
    model.entropy = fit_entropy_model([np.ones((4, 7, 7), np.int8)])
    card = save(str(tmp_path), model, CARD_OF_CONV)
    state = safetensors.torch.load((tmp_path / WEIGHTS).read_bytes())
    for wrong in ({name: state[f"entropy.{name}"][:-1]}, {name: state[f"entropy.{name}"].half()}, {}):
        others = {key: value for key, value in state.items() if key != f"entropy.{name}"}
        damaged = safetensors.torch.save(others | {f"entropy.{key}": value.contiguous() for key, value in wrong.items()})
        assert "do not fit" in refused(lambda damaged=damaged: build(card, damaged))


def test_what_is_saved_twice_has_the_same_digest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Conv(width=8)
    assert save(str(tmp_path / "a"), model, CARD_OF_CONV) == save(str(tmp_path / "b"), model, CARD_OF_CONV)


def test_a_card_keeps_what_it_was_given(tmp_path: Path) -> None:
    facts = {
        "training": {"steps": 10, "data": "Fotos für alle"},
        "metrics": [{"psnr_db": 30.5}],
        "preprocessing": {"gray": True},
    }
    save(str(tmp_path), Conv(width=8), CARD_OF_CONV | facts)
    card = read_card(str(tmp_path)).model_dump()
    assert {k: card[k] for k in facts} == facts
    assert "Fotos für alle" in (tmp_path / CARD).read_text(encoding="utf-8")


def test_a_checkpoint_lives_in_a_bucket_too(moto_bucket: str) -> None:
    url = f"{moto_bucket}/models/tiny"
    torch.manual_seed(0)
    model = Conv(width=8)
    save(url, model, CARD_OF_CONV)
    torch.testing.assert_close(load(url).state_dict(), model.state_dict(), rtol=1e-3, atol=1e-4)
    assert "card.json is missing" in refused(lambda: read_card(f"{moto_bucket}/models/none"))


def test_a_file_url_is_a_folder(folder: Path) -> None:
    assert load(f"file://{folder}/").state_dict().keys() == Conv(width=8).state_dict().keys()


@pytest.mark.parametrize("name", bundled_names())
def test_every_bundled_checkpoint_opens_and_is_small(name: str) -> None:
    assert read_card(name).name == name
    assert read_card(name).data
    assert isinstance(load(name), ARCHITECTURES[read_card(name).architecture])
    assert (checkpoint.BUNDLED_FOLDER / name / WEIGHTS).stat().st_size < 3_000_000


def test_weights_of_another_digest_are_refused(folder: Path) -> None:
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    message = refused(lambda: load(str(folder)))
    assert "sha256" in message
    assert str(folder) in message


def test_a_card_that_cannot_be_written_to_its_end_stays_as_it_was(folder: Path) -> None:
    before = (folder / CARD).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As a disk that fills up in the middle of a write.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        message = refused(lambda: checkpoint.write_metrics(str(folder), {"set": "a"}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "card.json cannot be written" in message
    assert (folder / CARD).read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == [CARD, WEIGHTS]


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert f"{name} is missing" in refused(lambda: load(str(folder)))
    assert f"{name} is missing" in refused(lambda: load(f"file://{folder}"))


def test_an_unknown_key_of_a_card_is_named(folder: Path) -> None:
    rewrite(folder, colour="red")
    message = refused(lambda: load(str(folder)))
    assert "colour" in message
    assert CARD in message


def test_a_missing_key_of_a_card_is_named(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    del card["sha256"]
    (folder / CARD).write_text(json.dumps(card))
    assert "sha256" in refused(lambda: load(str(folder)))


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"name": 3}'])
def test_a_card_that_is_none_is_refused(folder: Path, text: bytes) -> None:
    (folder / CARD).write_bytes(text)
    assert CARD in refused(lambda: read_card(str(folder)))


@pytest.mark.parametrize("extension", [".pt", ".pth", ".pkl", ".ckpt", ".bin", ".PT", ".pickle"])
def test_pickled_weights_are_refused_by_name(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"model{extension}"
    path.write_bytes(pickle.dumps({}))
    assert "pickled weights are refused" in refused(lambda: read_card(str(path)))


def test_a_pickle_under_the_name_of_the_weights_is_refused(folder: Path) -> None:
    torch.save(Conv(width=8).state_dict(), folder / WEIGHTS)
    rewrite(folder, sha256=hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())
    assert "do not fit conv" in refused(lambda: load(str(folder)))


@pytest.mark.parametrize(
    "url", ["http://host/model", "https://host/model", "ftp://host/model", "gs://b/model", "zip::s3://b/m"]
)
def test_other_schemes_are_refused(url: str) -> None:
    assert "Valid: file, s3" in refused(lambda: read_card(url))


@pytest.mark.parametrize("name", ["nothing-like-this", "../checkpoints/nothing", "/nowhere/at/all", "", "s3"])
def test_a_name_that_is_nothing_is_refused_with_the_valid_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(lambda: read_card(name))
    assert all(known in message for known in bundled_names()) or CARD in message


def test_a_file_where_a_folder_is_meant_is_refused(folder: Path) -> None:
    refused(lambda: read_card(str(folder / WEIGHTS)))
    refused(lambda: read_card(f"file://{folder / WEIGHTS}"))


def test_an_unknown_architecture_is_refused_with_the_valid_ones(folder: Path) -> None:
    rewrite(folder, architecture="transformer")
    message = refused(lambda: load(str(folder)))
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
def test_parameters_that_do_not_fit_are_refused(folder: Path, architecture: str, parameters: dict[str, Any]) -> None:
    card = Card(**CARD_OF_CONV | {"architecture": architecture, "parameters": parameters}, sha256="")
    message = refused(lambda: build(card, (folder / WEIGHTS).read_bytes()))
    assert "tiny" in message
    assert architecture in message
