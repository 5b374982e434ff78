"""Checkpoints of small autoencoders of diffusers with random weights, and outputs that they made."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from imagemill.models import checkpoint as checkpoints
from imagemill.models.card import Card
from imagemill.models.contract import Contract, LatentContract
from imagemill.models.routes.diffusers_route import build_module
from imagemill.pipeline.account import account
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.engines.local_channel import LocalChannel
from imagemill.pipeline.output.lease import Lease
from imagemill.pipeline.resolve import build_plan, check_model, resolve
from imagemill.pipeline.storage import Store
from imagemill.pipeline.worker import Worker
from tests.support.worker_jobs import job_here

CONFIGS: dict[str, dict[str, Any]] = {
    # With attention in the middle.
    "AutoencoderKL": {
        "block_out_channels": (8, 8, 16),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8),
        "num_encoder_blocks": (1, 1, 1),
        "num_decoder_blocks": (1, 1, 1),
    },
    "AutoencoderDC": {
        "latent_channels": 8,
        "attention_head_dim": 8,
        "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
        "encoder_block_out_channels": (8, 16),
        "decoder_block_out_channels": (8, 16),
        "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1),
        "encoder_qkv_multiscales": ((), (5,)),
        "decoder_qkv_multiscales": ((), (5,)),
        "downsample_block_type": "Conv",
        "decoder_norm_types": "rms_norm",
        "decoder_act_fns": "silu",
    },
}
CONTRACTS = {
    "AutoencoderKL": Contract(
        input_range=(-1, 1),
        size_multiple=4,
        latent=LatentContract(channels=4, factor=4, is_distribution=True, scaling_factor=0.18215, shift_factor=0.1),
    ),
    "AutoencoderTiny": Contract(
        input_range=(-1, 1), size_multiple=4, tiling="exact", halo=48, latent=LatentContract(channels=4, factor=4)
    ),
    "AutoencoderDC": Contract(input_range=(-1, 1), size_multiple=2, latent=LatentContract(channels=8, factor=2)),
}


def write_float_coder(folder: Path, name: str = "AutoencoderKL", **contract: Any) -> torch.nn.Module:
    """Write a checkpoint folder with random weights, and return the module of the library.

    Args:
        folder: of the checkpoint.
        name: a key of CONFIGS.
        contract: fields of the contract to change.
    """
    torch.manual_seed(0)
    module = build_module(name, CONFIGS[name])
    weights = safetensors.torch.save({key: value.contiguous() for key, value in module.state_dict().items()})
    card = Card(
        name=name,
        task="compress",
        route="diffusers",
        architecture=name,
        parameters=CONFIGS[name],
        contract=CONTRACTS[name].model_copy(update=contract),
        sha256=hashlib.sha256(weights).hexdigest(),
    )
    folder.mkdir(parents=True)
    (folder / checkpoints.WEIGHTS).write_bytes(weights)
    (folder / checkpoints.CARD).write_text(card.model_dump_json())
    return module


def library_latent(module: Any, x_BCHW: Tensor) -> Tensor:
    """Return what the library encodes images (B,3,H,W) in [0,1] to, without any code of imagemill: the mode."""
    with torch.inference_mode():
        encoded = module.encode(x_BCHW * 2 - 1)
    return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else next(iter(encoded.values()))


def compress_here(tmp_path: Path, **settings: Any) -> Store:
    """Compress tmp_path/in with the code of a worker, in this process, and return the output."""
    keys = {"checkpoint": str(tmp_path / "checkpoint"), "input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
    resolved = resolve(RunConfig(task="compress", **keys | settings))
    check_model(resolved)
    with Lease(resolved.output) as lease:
        plan = build_plan(resolved)
        job = job_here(resolved, lease.fencing_token)
        params, lineage = resolved.params.model_dump(exclude_unset=True), job.lineage | {"model_id": resolved.card.name}
        config = resolved.config
        job = replace(
            job, params=params, reconstruct=config.reconstruct, quality=1.0, lineage=lineage, dtype=config.pool.dtype
        )
        Worker(job, LocalChannel()).process_block(plan.todo)
        summary = account(resolved.output, plan, ["psnr_db"])
    assert (summary.ok, summary.rejected) == (len(plan.todo), 0)
    return resolved.output
