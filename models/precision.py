"""The number format (dtype) that a model runs in."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from imagemill.models.autoencoder import Network

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


def select_dtype(device: str, name: str | None, supported: Sequence[str] = Network.dtypes) -> torch.dtype:
    """Return the dtype of a name, or the fastest one for None; float32 if the network does not support it.

    On a CPU, float32 replaces float16, which takes 10 to 100 times as long there.

    Args:
        device: "cpu" or "cuda".
        name: the dtype that the config asks for.
        supported: number formats that the network may run in.
    """
    dtype: torch.dtype = fastest_dtype(device) if name is None else getattr(torch, name)
    is_slow = (device, dtype) == ("cpu", torch.float16)
    return torch.float32 if is_slow or str(dtype).removeprefix("torch.") not in supported else dtype


@dataclass(frozen=True)
class Precision:
    """The device and dtype that a model runs in.

    Attributes:
        device: "cpu" or "cuda".
        dtype: the number format of its layers.
        memory: bytes that one pass of the model may take; None if that is unknown.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    memory: int | None = None

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
