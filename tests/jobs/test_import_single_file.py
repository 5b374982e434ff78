"""`models import` of an autoencoder of Stable Diffusion in one file, with the names of its authors."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from imagemill.models import checkpoint as checkpoints
from imagemill.models.routes import single_file
from tests.support.imported_models import build_kl, to_single_file

Command = Callable[..., tuple[int, str, str]]
WITHOUT_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
SD = {"cond_stage_model.transformer.weight": torch.zeros(2), "model.diffusion_model.out.2.bias": torch.zeros(2)}
SDXL = {"conditioner.embedders.1.model.weight": torch.zeros(2)}
FLUX = {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": torch.zeros(2)}
TRAINING = {"loss.discriminator.main.0.weight": torch.zeros(2), "model_ema.decay": torch.zeros(())}
Case = tuple[dict[str, Any], str, dict[str, Tensor], float | None, float | None]
FILES: dict[str, Case] = {
    "Stable Diffusion": ({}, "first_stage_model.", SD, 0.18215, None),
    "SDXL": ({}, "first_stage_model.", SDXL, 0.13025, None),
    "Playground": ({}, "first_stage_model.", SDXL | {"edm_mean": torch.zeros(4)}, None, None),
    "FLUX": ({"latent_channels": 16, **WITHOUT_QUANT}, "vae.", FLUX, 0.3611, 0.1159),
    "autoencoder alone": ({}, "", TRAINING, None, None),
    "two sizes": ({"levels": 2}, "first_stage_model.", SD, None, None),
    "other channels": ({"latent_channels": 8}, "first_stage_model.", SD, None, None),
    "no attention": ({"mid_block_add_attention": False}, "", {}, None, None),
}


@pytest.mark.parametrize("case", FILES)
def test_import_single_file_gives_its_latents(case: str, imagemill: Command, tmp_path: Path) -> None:
    options, prefix, others, scaling, shift = FILES[case]
    network = build_kl(**options)
    safetensors.torch.save_file(to_single_file(network, prefix) | others, tmp_path / "model.safetensors")
    code, out, err = imagemill("models", "import", tmp_path / "model.safetensors", tmp_path / "vae")
    assert code == 0, err
    card, weights = checkpoints.read(str(tmp_path / "vae"))
    assert (card.route, card.task, card.architecture) == ("diffusers", "compress", "AutoencoderKL")
    latent = card.contract.latent
    assert (latent.scaling_factor, latent.shift_factor) == (scaling, shift)
    assert ("--argument scaling_factor=" in out) == (scaling is None)
    assert len(safetensors.torch.load(weights)) == len(network.state_dict())
    x = torch.rand(2, 3, 32, 48)
    with torch.inference_mode():
        expected = network.encode(x * 2 - 1, return_dict=False)[0].mode()
        assert (checkpoints.build(card, weights).encode(x) - expected).abs().max() < 1e-5


def test_import_ckpt_in_half_precision_with_factors(imagemill: Command, tmp_path: Path) -> None:
    tensors = {name: value.half() for name, value in to_single_file(build_kl()).items()}
    torch.save({"state_dict": tensors, "global_step": 1}, tmp_path / "vae.ckpt")
    factors = ("--argument", "scaling_factor=0.5", "--argument", "shift_factor=1")
    code, out, err = imagemill("models", "import", tmp_path / "vae.ckpt", tmp_path / "vae", *factors)
    assert code == 0, err
    assert "scaling_factor 0.5, shift_factor 1" in out
    assert "--argument" not in out
    card = checkpoints.read_card(str(tmp_path / "vae"))
    assert (card.contract.latent.scaling_factor, card.contract.latent.shift_factor) == (0.5, 1)
    assert card.origin.dtypes == ["float16"]


@pytest.mark.parametrize(
    ("extra", "arguments", "message"),
    [
        ({"bn.running_mean": torch.zeros(2)}, (), "parts that AutoencoderKL lacks: bn.running_mean"),
        ({"encoder.down.1.attn.0.q.weight": torch.zeros(2)}, (), "unknown: encoder.down.1.attn.0.q.weight"),
        ({}, ("--argument", "scale=1"), "--argument: only for networks of your own"),
        ({}, ("--argument", "scaling_factor=big"), "--argument scaling_factor='big': must be a number"),
        ({}, ("--task", "denoise"), "Valid: compress"),
    ],
)
def test_import_refuses_other_single_files(
    extra: dict[str, Tensor], arguments: tuple[str, ...], message: str, imagemill: Command, tmp_path: Path
) -> None:
    safetensors.torch.save_file(to_single_file(build_kl(levels=2)) | extra, tmp_path / "model.safetensors")
    command = ("models", "import", "--quiet", tmp_path / "model.safetensors", tmp_path / "vae", *arguments)
    code, _, err = imagemill(*command)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "vae").exists()


def test_factors_are_refused_for_other_files(imagemill: Command, tmp_path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    command = ("models", "import", "--quiet", tmp_path / "other.safetensors", tmp_path / "vae")
    code, _, err = imagemill(*command, "--argument", "scaling_factor=0.5")
    assert code == 2
    assert "--argument: only for networks of your own" in err


def test_import_names_the_extra_for_single_files(
    imagemill: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors.torch.save_file(to_single_file(build_kl(levels=2)), tmp_path / "model.safetensors")
    for name in ("diffusers", "diffusers.loaders.single_file_utils"):
        monkeypatch.setitem(sys.modules, name, None)
    code, _, err = imagemill("models", "import", tmp_path / "model.safetensors", tmp_path / "vae")
    assert code == 2
    assert "pip install 'imagemill[diffusers]'" in err


def test_networks_of_spandrel_with_such_names_stay_theirs() -> None:
    """RestoreFormer restores faces. It has an encoder and a decoder of the same code, with a table of codes between them."""
    from spandrel.architectures.RestoreFormer import RestoreFormer

    with torch.device("meta"):
        tensors = RestoreFormer().state_dict()
    assert "encoder.down.0.block.0.conv1.weight" in tensors
    assert single_file.find_prefix(tensors) is None
