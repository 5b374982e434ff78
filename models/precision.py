"""In which number format a model runs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BF16_CAPABILITY, FP16_CAPABILITY = 8, 7
"""Compute capability from which a GPU has tensor cores for bfloat16 (Ampere), and for float16 (Volta: V100; Turing: T4)."""


def fastest_dtype(device: str) -> torch.dtype:
    """The number format in which networks run fastest on a device ("cpu" or "cuda").

    bfloat16 on GPUs that have it and on CPUs with AMX, float16 on older GPUs with tensor cores, else float32. A CPU with
    avx512_bf16 alone reaches two thirds of float32's speed (tests/benchmarks/precision.py).
    """
    if device == "cuda":
        capability = torch.cuda.get_device_capability()[0]
        if capability >= BF16_CAPABILITY:
            return torch.bfloat16
        return torch.float16 if capability >= FP16_CAPABILITY else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def select_dtype(device: str, wanted: str | None) -> torch.dtype:
    """The number format by name, or the fastest.

    On a CPU float32 takes the place of float16, which takes 10 to 100 times as long there.
    """
    if wanted is None:
        return fastest_dtype(device)
    return torch.float32 if (device, wanted) == ("cpu", "float16") else getattr(torch, wanted)


@dataclass(frozen=True)
class Precision:
    """Where and in which number format a model runs."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def run(self, fn: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Return fn(*inputs) in this number format; in float32 where values are too large for float16 (above 65,504).

        Some GPUs without tensor cores (GTX 16xx) give NaN in float16, which is caught too.
        """
        with self.autocast():
            y = fn(*inputs)
        if self.dtype == torch.float16 and not bool(y.isfinite().all()):
            y = fn(*inputs)
        return y
