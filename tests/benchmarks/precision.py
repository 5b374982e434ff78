"""Compare the speed of bfloat16 and float32 with the denoiser, running and training.

Run: python tests/benchmarks/precision.py
"""

import statistics
import time
from collections.abc import Callable

import torch

from imagemill.models.architectures.unet import UNet
from imagemill.models.objectives import OBJECTIVES

REPEATS = 7


def seconds(fn: Callable[[], object]) -> float:
    """Return the median of several calls, after two calls to warm up."""
    times = []
    for _ in range(REPEATS + 2):
        began = time.perf_counter()
        fn()
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def main() -> None:
    torch.set_num_threads(1)
    net = UNet().to(memory_format=torch.channels_last)
    adam = torch.optim.AdamW(net.parameters())
    x, sigma = torch.rand(4, 3, 256, 256).contiguous(memory_format=torch.channels_last), torch.full((4,), 0.1)
    crops = torch.rand(16, 3, 64, 64).contiguous(memory_format=torch.channels_last)

    def run() -> None:
        with torch.inference_mode():
            net(x, sigma)

    def learn() -> None:
        OBJECTIVES["denoise"].loss(net, crops, torch.Generator().manual_seed(0))["loss"].backward()
        adam.step()
        adam.zero_grad()

    for name, fn in (("running", run), ("learning", learn)):
        ratios = []
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16, enabled=False):
                plain = seconds(fn)
            with torch.autocast("cpu", torch.bfloat16):
                ratios.append(plain / seconds(fn))
        middle, spread = statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name}: bfloat16 has {middle:.2f} of float32's speed ({spread})")


if __name__ == "__main__":
    main()
