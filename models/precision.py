"""In which number format a model runs."""

from dataclasses import dataclass

import torch


def bf16_hardware(device: str) -> bool:
    """Whether bfloat16 is faster than float32 there: Ampere and later GPUs, CPUs with AMX.

    avx512_bf16 alone is slower: two thirds of float32's speed (tests/benchmarks/precision.py).
    """
    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return torch.cpu._is_amx_tile_supported()


@dataclass(frozen=True)
class Precision:
    """Where and in which number format a model runs."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)
