"""Small models as users have them: folders of diffusers, files that spandrel recognises, classes with a state dict."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

KL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
TINY_CODER = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}
DC = {
    "encoder_block_out_channels": (8, 16),
    "decoder_block_out_channels": (8, 16),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "encoder_qkv_multiscales": ((), (5,)),
    "decoder_qkv_multiscales": ((), (5,)),
    "latent_channels": 4,
    "attention_head_dim": 8,
}
AUTOENCODERS: dict[str, dict[str, Any]] = {"AutoencoderKL": KL, "AutoencoderTiny": TINY_CODER, "AutoencoderDC": DC}
NETS = '''
"""Networks of a user."""

import torch
from torch import nn

from my_package.blocks import conv


class TinyDenoiser(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.inner = nn.Sequential(conv(3, width), nn.ReLU(), conv(width, 3))

    def forward(self, x, sigma):
        return x - sigma.view(-1, 1, 1, 1) * self.inner(x)


class Doubler(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = conv(1, 4)

    def forward(self, x):
        return nn.functional.pixel_shuffle(x.expand(-1, 4, -1, -1) + 0.01 * self.inner(x), 2)


class Coder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 6, 4, stride=4), nn.ConvTranspose2d(6, 3, 4, stride=4)

    def encode(self, x):
        return self.down(x)

    def decode(self, z):
        return self.up(z)


class Fixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = conv(3, 3)

    def forward(self, x, mask):
        return self.inner(x)


class Shrinker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 2, stride=2)

    def forward(self, x):
        return self.inner(x)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = conv(3, 3)

    def forward(self, x):
        raise KeyError("missing")


def not_a_class():
    raise AssertionError("called")
'''
BLOCKS = '''
"""A module that the networks import."""

from torch import nn


def conv(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)
'''


def save_autoencoder(folder: Path, name: str, **options: Any) -> Any:
    """Save an autoencoder of diffusers with random weights, and return it."""
    import diffusers

    torch.manual_seed(0)
    network = getattr(diffusers, name)(**AUTOENCODERS[name]).eval()
    network.save_pretrained(folder, **options)
    return network


def build_dncnn() -> nn.Module:
    """Return a DnCNN for gray images with random weights, which removes hardly any noise."""
    from spandrel.architectures.DnCNN import DnCNN

    torch.manual_seed(0)
    return DnCNN(in_nc=1, out_nc=1, nc=8, nb=9, act_mode="R").eval()


def build_ffdnet(planes: int) -> dict[str, Tensor]:
    """Return random weights in the shapes of FFDNet, which works on images at half of their size."""
    torch.manual_seed(0)
    widths = [4 * planes + (1 if planes == 1 else 3), *[16] * 14, 4 * planes]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU()]
    return {f"model.{name}": value for name, value in nn.Sequential(*layers[:-1]).state_dict().items()}


def write_package(folder: Path) -> Path:
    """Write the package my_package with the networks of a user, and return the folder."""
    package = folder / "my_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text(NETS)
    (package / "blocks.py").write_text(BLOCKS)
    return folder


def weights_of(folder: Path, name: str, **arguments: Any) -> dict[str, Tensor]:
    """Return random weights of a class in `NETS`."""
    from imagemill.models.code_permission import code_permitted
    from imagemill.models.routes.python_route import import_class

    torch.manual_seed(0)
    with code_permitted(str(folder)):
        return import_class(f"my_package.nets:{name}")(**arguments).state_dict()


def unpack_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process and its workers unpack the code of users in a folder of the test."""
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)


SINGLE_FILE_NAMES = {
    "encoder.mid_block.resnets.0": "encoder.mid.block_1",
    "encoder.mid_block.resnets.1": "encoder.mid.block_2",
    "decoder.mid_block.resnets.0": "decoder.mid.block_1",
    "decoder.mid_block.resnets.1": "decoder.mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    "resnets": "block",
}
"""Parts of the names in an AutoencoderKL of diffusers, and the names of the authors of Stable Diffusion."""


def build_kl(latent_channels: int = 4, levels: int = 4, **options: Any) -> Any:
    """Return an AutoencoderKL of diffusers whose normalisations have 32 groups, like all in single files."""
    import diffusers

    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * levels, "up_block_types": ("UpDecoderBlock2D",) * levels}
    widths = (32, 64, 64, 64)[:levels]
    return diffusers.AutoencoderKL(
        block_out_channels=widths, latent_channels=latent_channels, layers_per_block=1, **blocks, **options
    ).eval()


def to_single_file(network: Any, prefix: str = "") -> dict[str, Tensor]:
    """Return the weights of an AutoencoderKL with the names and shapes of a single file."""
    levels = len(network.config.block_out_channels)
    tensors = {}
    for name, value in network.state_dict().items():
        if "attentions" in name and name.endswith("weight") and "group_norm" not in name:
            value = value[:, :, None, None]
        for n in range(levels):
            name = name.replace(f"down_blocks.{n}.", f"down.{n}.").replace(f"up_blocks.{n}.", f"up.{levels - 1 - n}.")
        for new, old in SINGLE_FILE_NAMES.items():
            name = name.replace(new, old)
        tensors[prefix + name] = value.clone()
    return tensors
