"""Autoencoders of Stable Diffusion in one file, whose weights have the names that the code of its authors gives them.

Such a file holds the weights alone. Their shapes decide the config that diffusers needs.
"""

from itertools import count, takewhile
from typing import Any

from torch import Tensor

from imagemill.models.errors import CheckpointError
from imagemill.models.routes.diffusers_route import MISSING
from imagemill.models.routes.weights import join_names

PREFIXES = ("first_stage_model.", "vae.", "")
"""What stands before the names of the weights: in a file with a whole model, or with the autoencoder alone."""
PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
TRAINING = ("loss.", "model_ema.")
"""Parts that only the training of the autoencoder uses."""
GROUPS = 32
"""Groups of all normalisations in the authors' code. No shape shows their number."""
FACTORS = ("scaling_factor", "shift_factor")
"""What the weights of an autoencoder do not say, but a user can."""
FAMILIES = {
    "conditioner.embedders.": (4, {"scaling_factor": 0.13025}),
    "cond_stage_model.": (4, {"scaling_factor": 0.18215}),
    "model.diffusion_model.joint_blocks.": (16, {"scaling_factor": 1.5305, "shift_factor": 0.0609}),
    "model.diffusion_model.double_blocks.": (16, {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
}
"""Names in a file with a whole model → channels and factors of its latents: SDXL, Stable Diffusion 1 and 2, SD3, FLUX."""
LEVELS = 4
"""Sizes that the autoencoders of these families work at."""
OTHER_SCALING = "edm_mean"
"""A weight of models whose latents are scaled channel by channel (Playground 2.5)."""


def find_prefix(tensors: dict[str, Tensor]) -> str | None:
    """Return what stands before the names of an autoencoder's weights; None if there is no such autoencoder.

    A network with a table of codes between encoder and decoder is another one, such as RestoreFormer, which spandrel knows.
    """
    marks = ("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight")
    prefix = next((start for start in PREFIXES if all(start + mark in tensors for mark in marks)), None)
    return None if f"{prefix}quantize.embedding.weight" in tensors else prefix


def convert(tensors: dict[str, Tensor], prefix: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the config of an AutoencoderKL of diffusers, and the weights with the names that this class gives them.

    Args:
        tensors: the content of the file.
        prefix: what `find_prefix` returned.

    Raises:
        CheckpointError: when diffusers is not installed, or the autoencoder has parts that an AutoencoderKL lacks.
    """
    try:
        from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
    except ImportError:
        raise CheckpointError(f"the autoencoder {MISSING}") from None
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if others := [name for name in own if not name.startswith(PARTS + TRAINING)]:
        raise CheckpointError(
            f"the file holds an autoencoder with parts that AutoencoderKL lacks: {join_names(others)}. Give a folder of "
            "diffusers"
        )
    own = {name: value for name, value in own.items() if name.startswith(PARTS)}
    config = read_config(own)
    return config | find_factors(tensors, config), convert_ldm_vae_checkpoint(own, config)


def read_config(own: dict[str, Tensor]) -> dict[str, Any]:
    """Return the config that the shapes of the weights decide.

    Args:
        own: the weights, whose names have no prefix.
    """
    first = "encoder.down.{}.block.{}.conv1.weight"
    widths = [own[first.format(n, 0)].shape[0] for n in takewhile(lambda n: first.format(n, 0) in own, count())]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": own["encoder.conv_in.weight"].shape[1],
        "out_channels": own["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths,
        "layers_per_block": sum(1 for _ in takewhile(lambda n: first.format(0, n) in own, count())),
        "latent_channels": own["decoder.conv_in.weight"].shape[1],
        "norm_num_groups": GROUPS,
        "mid_block_add_attention": "encoder.mid.attn_1.q.weight" in own,
        "use_quant_conv": "quant_conv.weight" in own,
        "use_post_quant_conv": "post_quant_conv.weight" in own,
    }


def find_factors(tensors: dict[str, Tensor], config: dict[str, Any]) -> dict[str, float]:
    """Return scaling_factor and shift_factor of a known model; nothing for a file that holds the autoencoder alone."""
    if len(config["block_out_channels"]) != LEVELS or OTHER_SCALING in tensors:
        return {}
    for start, (channels, factors) in FAMILIES.items():
        if config["latent_channels"] == channels and any(name.startswith(start) for name in tensors):
            return factors
    return {}
