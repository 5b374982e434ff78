"""Fit the whitening that comes with the product. Run: python -m imagemill.jobs.fit_likeness_whitening FOLDER …"""

import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from PIL import Image

from imagemill.models import checkpoint as checkpoints
from imagemill.models.likeness import WHITENING, features, whitening_of
from imagemill.models.objectives.compress import latents_of
from imagemill.pipeline.output.latent_values import dequantise

STEP = 26.0


def main() -> None:
    torch.set_num_threads(1)
    coder = checkpoints.build(*checkpoints.read("compress-small"))
    width, zero = coder.lattice(STEP)
    found = []
    for path in sorted(path for folder in sys.argv[1:] for path in Path(folder).rglob("*.jpg")):
        symbols = latents_of(coder, [np.asarray(Image.open(path).convert("RGB"))], STEP, "cpu")
        found.append(features(dequantise(symbols, width.numpy()[None], np.array([zero])), coder))
    whitening, path = whitening_of(np.concatenate(found)), checkpoints.BUNDLED / WHITENING
    tensors = {"mean": whitening.mean, "directions": whitening.directions}
    safetensors.numpy.save_file({k: np.ascontiguousarray(v, np.float16) for k, v in tensors.items()}, path)
    print(f"{len(found):,} images: {path}")


if __name__ == "__main__":
    main()
