"""The number format (dtype) that a model runs in."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BF16_CAPABILITY, FP16_CAPABILITY = 8, 7
"""Compute capability from which GPUs have tensor cores for bfloat16 (Ampere) and float16 (Volta: V100; Turing: T4)."""


def fastest_dtype(device: str) -> torch.dtype:
    """Return the dtype in which networks run fastest on a device ("cpu" or "cuda").

    This is bfloat16 on GPUs with bfloat16 tensor cores and on CPUs with AMX, float16 on older GPUs with tensor cores, and
    float32 otherwise. With avx512_bf16 alone, bfloat16 reaches two thirds of the speed of float32: see
    tests/benchmarks/precision.py.
    """
    if device == "cuda":
        capability = torch.cuda.get_device_capability()[0]
        if capability >= BF16_CAPABILITY:
            return torch.bfloat16
        return torch.float16 if capability >= FP16_CAPABILITY else torch.float32
    return torch.bfloat16 if torch.cpu._is_amx_tile_supported() else torch.float32


def select_dtype(device: str, name: str | None) -> torch.dtype:
    """Return the dtype of a name, or the fastest one for None.

    On a CPU, float32 replaces float16, which takes 10 to 100 times as long there.
    """
    if name is None:
        return fastest_dtype(device)
    return torch.float32 if (device, name) == ("cpu", "float16") else getattr(torch, name)


@dataclass(frozen=True)
class Precision:
    """The device and dtype that a model runs in."""

    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def autocast(self) -> torch.autocast:
        """Return the autocast context of the dtype; it does nothing for float32."""
        return torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32)

    def run(self, fn: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Return fn(*inputs) in the dtype, or in float32 if values exceed the range of float16 (65,504).

        Some GPUs without tensor cores (GTX 16xx) give NaN in float16, which float32 avoids as well.
        """
        with self.autocast():
            y = fn(*inputs)
        if self.dtype == torch.float16 and not bool(y.isfinite().all()):
            y = fn(*inputs)
        return y
