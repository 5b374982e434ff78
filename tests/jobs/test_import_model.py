"""`imagemill models import`: each route, what it refuses, and that no code runs without permission."""

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s3fs
import safetensors.torch
import torch

from imagemill.models import checkpoint as checkpoints
from tests.support.imported_models import (
    AUTOENCODERS,
    build_dncnn,
    build_ffdnet,
    save_autoencoder,
    unpack_in,
    weights_of,
    write_package,
)

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    unpack_in(tmp_path, monkeypatch)
    return tmp_path / "dest"


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """Return a folder with the package my_package."""
    return write_package(tmp_path / "code")


@pytest.fixture
def tiny_denoiser(code: Path, tmp_path: Path) -> Path:
    """Return a file with weights of my_package.nets:TinyDenoiser(width=6)."""
    file = tmp_path / "tiny.pt"
    torch.save({"state_dict": weights_of(code, "TinyDenoiser", width=6), "epoch": 3}, file)
    return file


def facts(out: str) -> dict[str, str]:
    """Return the lines that the command prints, by their names."""
    lines = (line.split("  ", 1) for line in out.splitlines() if "  " in line)
    return {name: value.strip() for name, value in lines}


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_import_autoencoder_gives_its_latents(name: str, imagemill: Command, tmp_path: Path, dest: Path) -> None:
    network = save_autoencoder(tmp_path / "source", name)
    code, out, err = imagemill("models", "import", tmp_path / "source", dest)
    assert code == 0, err
    card, weights = checkpoints.read(str(dest))
    assert (card.route, card.task, card.architecture, card.name) == ("diffusers", "compress", name, "dest")
    assert card.origin is not None
    assert set(card.origin.files) == {"config.json", "diffusion_pytorch_model.safetensors"}
    shown = facts(out)
    assert name in shown["recognised"]
    assert shown["latents"].startswith("4×256×256 floats for 512×512")
    assert shown["tiling"].startswith("exact" if name == "AutoencoderTiny" else "never")
    assert f"imagemill compress PHOTOS OUTPUT --checkpoint {dest}" in out
    x = torch.rand(2, 3, 32, 48)
    with torch.inference_mode():
        expected = network.encode(x * 2 - 1, return_dict=False)[0]
        expected = expected if isinstance(expected, torch.Tensor) else expected.mode()
        latents = checkpoints.build(card, weights).encode(x)
    assert (latents - expected).abs().max() < 1e-5


def test_import_pipeline_reads_shards_and_keeps_dtype(imagemill: Command, tmp_path: Path, dest: Path) -> None:
    """The folder of a whole pipeline holds the autoencoder in vae/; large weights are in several files with an index."""
    network = save_autoencoder(tmp_path / "source/vae", "AutoencoderKL").half()
    (tmp_path / "source/vae/diffusion_pytorch_model.safetensors").unlink()
    network.save_pretrained(tmp_path / "source/vae", max_shard_size="20KB")
    (tmp_path / "source/model_index.json").write_text("{}")
    code, out, err = imagemill("models", "import", tmp_path / "source", dest, "--name", "half")
    assert code == 0, err
    assert facts(out)["weights"].endswith("float16")
    card = checkpoints.read_card(str(dest))
    assert card.name == "half"
    assert len(card.origin.files) > 3
    tensors = safetensors.torch.load_file(dest / "weights.safetensors")
    assert all(torch.equal(tensors[key], value) for key, value in network.state_dict().items())


def test_import_renames_weights_of_old_versions(imagemill: Command, tmp_path: Path, dest: Path) -> None:
    """The published autoencoders of Stable Diffusion 1 call the layers of their attention query, key and value."""
    network = save_autoencoder(tmp_path / "source", "AutoencoderKL")
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for key, value in network.state_dict().items():
        for new, old in names.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
        tensors[key] = value.clone()
    assert any(".query." in key for key in tensors)
    safetensors.torch.save_file(tensors, tmp_path / "source/diffusion_pytorch_model.safetensors")
    assert imagemill("models", "import", tmp_path / "source", dest)[0] == 0


@pytest.mark.parametrize("wrapper", ["params", "state_dict", None])
def test_import_recognises_dncnn(wrapper: str | None, imagemill: Command, tmp_path: Path, dest: Path) -> None:
    network = build_dncnn()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({wrapper: state, "epoch": 1} if wrapper else state, tmp_path / "dncnn.pth")
    code, _, err = imagemill("models", "import", tmp_path / "dncnn.pth", dest)
    assert code == 0, err
    card, weights = checkpoints.read(str(dest))
    assert (card.route, card.task, card.architecture) == ("spandrel", "denoise", "DnCNN")
    assert (card.contract.channels, card.contract.tiling, card.contract.halo) == (1, "exact", 9)
    x = torch.rand(2, 3, 21, 30)
    with torch.inference_mode():
        expected = torch.cat([network(x[:, plane : plane + 1]) for plane in range(3)], 1)
        assert (checkpoints.build(card, weights)(x) - expected).abs().max() < 1e-5


def test_import_reads_and_writes_buckets(imagemill: Command, tmp_path: Path, rclone_bucket: str) -> None:
    save_autoencoder(tmp_path / "source", "AutoencoderTiny")
    torch.save(build_dncnn().state_dict(), tmp_path / "source/dncnn.pth")
    s3fs.S3FileSystem().put(str(tmp_path / "source"), f"{rclone_bucket}/source", recursive=True)
    for source in ("source", "source/dncnn.pth"):
        code, _, err = imagemill("models", "import", f"{rclone_bucket}/{source}", f"{rclone_bucket}/{source}-imported")
        assert code == 0, err
        assert imagemill("models", "show", f"{rclone_bucket}/{source}-imported")[0] == 0
    code, _, err = imagemill("models", "import", f"{rclone_bucket}/nowhere", tmp_path / "dest")
    assert code == 2
    assert "config.json is missing" in err


def test_import_takes_another_task(imagemill: Command, tmp_path: Path, dest: Path) -> None:
    torch.save(build_dncnn().state_dict(), tmp_path / "dncnn.pth")
    assert imagemill("models", "import", tmp_path / "dncnn.pth", dest, "--task", "restore")[0] == 0
    assert checkpoints.read_card(str(dest)).task == "restore"


@pytest.mark.parametrize("planes", [1, 3])
def test_import_refuses_ffdnet_taken_for_dncnn(planes: int, imagemill: Command, tmp_path: Path, dest: Path) -> None:
    safetensors.torch.save_file(build_ffdnet(planes), tmp_path / "ffdnet.safetensors")
    code, _, err = imagemill("models", "import", tmp_path / "ffdnet.safetensors", dest)
    assert code == 2
    assert "spandrel takes the weights for DnCNN" in err
    assert "--architecture" in err
    assert not dest.exists()


def test_import_refuses_results_unlike_the_input(imagemill: Command, tmp_path: Path, dest: Path) -> None:
    state = build_dncnn().state_dict()
    state["model.16.weight"] *= 3000
    torch.save(state, tmp_path / "dncnn.pth")
    code, _, err = imagemill("models", "import", tmp_path / "dncnn.pth", dest)
    assert code == 2
    assert "does not resemble the image" in err
    assert not dest.exists()


def own(name: str, code: Path, *more: object) -> list[object]:
    """Return the options of a network of my_package."""
    return ["--architecture", f"my_package.nets:{name}", "--code", code, *more]


def test_import_own_denoiser(imagemill: Command, code: Path, tiny_denoiser: Path, dest: Path) -> None:
    status, out, err = imagemill(
        "models", "import", tiny_denoiser, dest, *own("TinyDenoiser", code, "--argument", "width=6", "--task", "denoise")
    )
    assert status == 0, err
    assert f"next: imagemill denoise PHOTOS OUTPUT --checkpoint {dest} --code {code}" in out
    shown = facts(out)
    assert (shown["noise level"], shown["tiling"][:5]) == ("taken for each image", "exact")
    card = checkpoints.read_card(str(dest))
    assert (card.route, card.parameters, len(card.code_sha256)) == ("python", {"width": 6}, 64)


def test_import_own_upscaler_measures_scale(imagemill: Command, code: Path, tmp_path: Path, dest: Path) -> None:
    torch.save(weights_of(code, "Doubler"), tmp_path / "doubler.pt")
    status, _, err = imagemill("models", "import", tmp_path / "doubler.pt", dest, *own("Doubler", code))
    assert status == 0, err
    card = checkpoints.read_card(str(dest))
    assert (card.task, card.contract.scale, card.contract.channels) == ("upscale", 2, 1)


def test_import_own_coder_measures_latents(imagemill: Command, code: Path, tmp_path: Path, dest: Path) -> None:
    torch.save(weights_of(code, "Coder"), tmp_path / "coder.pt")
    arguments = own("Coder", code, "--input-range", "-1,1")
    status, _, err = imagemill("models", "import", tmp_path / "coder.pt", dest, *arguments)
    assert status == 0, err
    contract = checkpoints.read_card(str(dest)).contract
    assert contract.input_range == (-1, 1)
    assert (contract.size_multiple, contract.latent.channels, contract.latent.factor) == (4, 6, 4)
    assert contract.tiling == "exact"


def test_import_runs_no_code_of_a_pickle(imagemill: Command, tmp_path: Path, dest: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save({"state_dict": Attack()}, tmp_path / "model.pth")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Attack()))
    for file in ("model.pth", "plain.pt"):
        code, _, err = imagemill("models", "import", tmp_path / file, dest)
        assert code == 2
        assert len(err.splitlines()) == 1
        assert "safetensors.torch.save_file" in err
    assert not (tmp_path / "attacked").exists()
    assert not dest.exists()


def test_import_never_replaces_other_checkpoints(imagemill: Command, tmp_path: Path, dest: Path) -> None:
    save_autoencoder(tmp_path / "source", "AutoencoderTiny")
    command = ["models", "import", tmp_path / "source", dest]
    dest.mkdir()
    (dest / "weights.safetensors").write_bytes(b"precious")
    assert imagemill(*command)[0] == 2
    assert (dest / "weights.safetensors").read_bytes() == b"precious"
    assert imagemill(*command, "--overwrite")[0] == 0
    # An import replaces an earlier one, also one that was killed before it wrote the card.
    assert imagemill(*command)[0] == 0
    (dest / "card.json").unlink()
    assert imagemill(*command)[0] == 0
    card = json.loads((dest / "card.json").read_text())
    (dest / "card.json").write_text(json.dumps(card | {"origin": None}))
    code, _, err = imagemill(*command)
    assert code == 2
    assert "did not write" in err


def test_import_of_another_network_is_refused(
    imagemill: Command, code: Path, tiny_denoiser: Path, tmp_path: Path, dest: Path
) -> None:
    assert imagemill("models", "import", tiny_denoiser, dest, *own("TinyDenoiser", code, "--argument", "width=6"))[0] == 0
    card = (dest / "card.json").read_bytes()
    save_autoencoder(tmp_path / "source", "AutoencoderTiny")
    status, _, err = imagemill("models", "import", tmp_path / "source", dest)
    assert status == 2
    assert "contains another network, " in err
    assert (dest / "card.json").read_bytes() == card


def test_import_digest_covers_the_contract(imagemill: Command, code: Path, tmp_path: Path, dest: Path) -> None:
    """Rows are known by the digest of the weights, so that the same weights in another range must have another digest."""
    torch.save(weights_of(code, "Coder"), tmp_path / "coder.pt")
    digests = set()
    for values in ("0,1", "-1,1"):
        imagemill("models", "import", tmp_path / "coder.pt", dest, *own("Coder", code, "--input-range", values))
        digests.add(checkpoints.read_card(str(dest)).sha256)
    assert len(digests) == 2


OWN = "my_package.nets:"
REFUSALS: dict[str, tuple[list[str], str]] = {
    "no such source": (["nowhere"], "not found"),
    "model of the hub": (["owner/model"], "hf download owner/model --local-dir FOLDER"),
    "file of a folder": (["kl/diffusion_pytorch_model.safetensors"], "Give the folder: "),
    "own checkpoint": (["checkpoint"], "is a checkpoint already"),
    "unknown file": (["notes.txt"], "unknown kind of file"),
    "empty folder": (["empty"], "config.json is missing"),
    "no weights": (["no-weights"], "diffusion_pytorch_model.safetensors is missing"),
    "no class": (["no-class"], "has no _class_name"),
    "unknown class": (["unknown-class"], "has no autoencoder 'AutoencoderOfTomorrow'"),
    "other class": (["other-class"], "has no autoencoder 'UNet2DModel'"),
    "wrong shapes": (["wrong-shapes"], "encoder.conv_in.weight 16×3×3×3 instead of 8×3×3×3"),
    "wrong task": (["kl", "--task", "upscale"], "Valid: compress"),
    "unknown task": (["kl", "--task", "fly"], "--task fly: unknown. Valid: "),
    "unknown weights": (["tiny.pt"], "spandrel does not recognise the weights"),
    "damaged": (["damaged.safetensors"], "is not a safetensors file"),
    "damaged pickle": (["damaged.pth"], "damaged.pth"),
    "no state dict": (["list.pth"], "holds no state dict"),
    "dest is a file": (["kl", "--dest", "notes.txt"], "is a file"),
    "options without architecture": (["tiny.pt", "--argument", "a=1", "--code", "code"], "--argument, --code: only for"),
    "folder for an architecture": (["kl", "--architecture", f"{OWN}Coder", "--code", "code"], "not a folder"),
    "no such module": (["tiny.pt", "--architecture", "nowhere:Net", "--code", "code"], "there is no module 'nowhere'"),
    "code not given": (["tiny.pt", "--architecture", f"{OWN}Coder"], "--code FOLDER"),
    "no such class": (["tiny.pt", "--architecture", f"{OWN}Nothing", "--code", "code"], "Valid: TinyDenoiser, Doubler, "),
    "no module class": (["tiny.pt", "--architecture", f"{OWN}not_a_class", "--code", "code"], "not a subclass of torch.nn"),
    "no colon": (["tiny.pt", "--architecture", "my_package", "--code", "code"], "must be MODULE:CLASS"),
    "unknown argument": (
        ["tiny.pt", "--architecture", f"{OWN}TinyDenoiser", "--code", "code", "--argument", "depth=1"],
        "unknown arguments: depth. The class takes (width",
    ),
    "malformed argument": (
        ["tiny.pt", "--architecture", f"{OWN}TinyDenoiser", "--code", "code", "--argument", "depth"],
        "--argument depth: must be key=value",
    ),
    "weights of another": (
        ["tiny.pt", "--architecture", f"{OWN}Coder", "--code", "code"],
        "missing: down.weight, down.bias, up.weight and 1 other; unknown: inner.0.weight",
    ),
    "weights of another width": (
        ["tiny.pt", "--architecture", f"{OWN}TinyDenoiser", "--code", "code"],
        "inner.0.weight 6×3×3×3 instead of 4×3×3×3",
    ),
    "second input": (["fixed.pt", "--architecture", f"{OWN}Fixed", "--code", "code"], "forward requires mask"),
    "smaller images": (["shrinker.pt", "--architecture", f"{OWN}Shrinker", "--code", "code"], "1/2 of the size"),
    "failing network": (["failing.pt", "--architecture", f"{OWN}Failing", "--code", "code"], "KeyError: 'missing'"),
    "code is a file": (["tiny.pt", "--architecture", f"{OWN}Coder", "--code", "notes.txt"], "is not a folder"),
    "code without Python": (["tiny.pt", "--architecture", f"{OWN}Coder", "--code", "empty"], "holds no Python files"),
    "input range": (
        ["tiny.pt", "--architecture", f"{OWN}Coder", "--code", "code", "--input-range", "255"],
        "--input-range 255: must be two numbers",
    ),
}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sources of REFUSALS."""
    folder = tmp_path_factory.mktemp("sources")
    network = save_autoencoder(folder / "kl", "AutoencoderKL")
    config = json.loads((folder / "kl/config.json").read_text())
    changes = {
        "no-class": {"_class_name": None},
        "unknown-class": {"_class_name": "AutoencoderOfTomorrow"},
        "other-class": {"_class_name": "UNet2DModel"},
        "wrong-shapes": {},
    }
    for name, change in changes.items():
        network.save_pretrained(folder / name)
        changed = {key: value for key, value in (config | change).items() if value is not None}
        (folder / name / "config.json").write_text(json.dumps(changed))
    path = folder / "wrong-shapes/diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    safetensors.torch.save_file(tensors | {"encoder.conv_in.weight": torch.zeros(16, 3, 3, 3)}, path)
    network.save_pretrained(folder / "no-weights")
    (folder / "no-weights/diffusion_pytorch_model.safetensors").unlink()
    for name in ("empty", "checkpoint"):
        (folder / name).mkdir()
    (folder / "checkpoint/card.json").write_text("{}")
    (folder / "notes.txt").write_text("notes")
    write_package(folder / "code")
    for name in ("Fixed", "Shrinker", "Failing"):
        torch.save(weights_of(folder / "code", name), folder / f"{name.lower()}.pt")
    torch.save(weights_of(folder / "code", "TinyDenoiser", width=6), folder / "tiny.pt")
    torch.save([1, 2], folder / "list.pth")
    for name in ("damaged.pth", "damaged.safetensors"):
        (folder / name).write_bytes(b"damaged")
    return folder


@pytest.mark.parametrize("case", REFUSALS)
def test_import_refuses_in_one_line(
    case: str, imagemill: Command, sources: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, message = REFUSALS[case]
    monkeypatch.chdir(sources)
    if "--dest" in arguments:
        arguments, dest = [arguments[0]], sources / arguments[2]
    before = sorted(sources.rglob("*"))
    code, _, err = imagemill("models", "import", "--quiet", arguments[0], dest, *arguments[1:])
    assert code == 2, err
    assert message in err
    assert len(err.splitlines()) == 1
    assert not dest.is_dir()
    assert sorted(sources.rglob("*")) == before


@pytest.mark.parametrize(("library", "source"), [("diffusers", "kl"), ("spandrel", "tiny.pt")])
def test_import_names_the_missing_extra(
    library: str, source: str, imagemill: Command, sources: Path, dest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    code, _, err = imagemill("models", "import", sources / source, dest)
    assert code == 2
    assert f"pip install 'imagemill[{library}]'" in err


def test_models_show_lists_an_imported_network(imagemill: Command, sources: Path, dest: Path) -> None:
    imagemill("models", "import", sources / "kl", dest)
    code, out, err = imagemill("models", "show", dest)
    assert code == 0, err
    assert "AutoencoderKL" in out


def test_card_lists_all_missing_fields(imagemill: Command, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text('{"name": "mine", "colour": 1}')
    code, _, err = imagemill("models", "show", tmp_path)
    assert code == 2
    assert "missing fields task, architecture, sha256; colour: Extra inputs are not permitted" in err
    assert "`imagemill models import`" in err
