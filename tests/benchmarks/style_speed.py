"""Measure one pass of style transfer by image size. Run: python tests/benchmarks/style_speed.py"""

import resource
import subprocess
import sys
import time

import numpy as np
import torch

from imagemill.jobs.paintings import swirls
from imagemill.models import checkpoint
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision
from imagemill.models.tasks.stylize import StylizeParams
from imagemill.models.tasks.task import Sample

MEGAPIXELS = (0.25, 1, 4, 16)


def measure(megapixels: float) -> None:
    """Measure one size in a separate process, so that the peak memory belongs to it."""
    torch.set_num_threads(1)
    card, weights = checkpoint.read("stylize-small")
    net = checkpoint.build(card, weights).to(memory_format=torch.channels_last)
    task, params = TASK_OBJECTIVES["stylize"], StylizeParams(style=["swirls"])
    prepared = task.prepare(net, params, [swirls()], "cpu")
    side = int((megapixels * 1e6) ** 0.5)
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    task.predict(prepared, [Sample(image[:256, :256])], params, Precision())
    began = time.perf_counter()
    task.predict(prepared, [Sample(image)], params, Precision())
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{megapixels:5g} MP  {seconds:6.2f} s  {seconds / megapixels:5.2f} s/MP  {peak:.2f} GB at the peak", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(float(sys.argv[1]))
    else:
        for size in MEGAPIXELS:
            subprocess.run([sys.executable, __file__, str(size)], check=True)
