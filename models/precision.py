"""In which number format a model runs."""

from dataclasses import dataclass

import torch


def bf16_hardware(device: str) -> bool:
    """Whether bfloat16 is faster than float32 there: avx512_bf16 or amx on a CPU, Ampere and later GPUs."""
    if device == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class Precision:
    """Where and in which number format a model runs."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)
