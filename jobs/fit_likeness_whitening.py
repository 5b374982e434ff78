"""Fit the whitening that comes with the product. Run: python -m imagemill.jobs.fit_likeness_whitening FOLDER …"""

import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from PIL import Image

from imagemill.models import checkpoint as checkpoints
from imagemill.models.likeness import WHITENING, fit_whitening, likeness_features
from imagemill.models.objectives.compress import encode_images
from imagemill.pipeline.output.latent_values import dequantise

STEP = 26.0


def main() -> None:
    torch.set_num_threads(1)
    coder = checkpoints.build(*checkpoints.read("compress-small"))
    width, zero = coder.dequantisation(STEP)
    found = []
    for path in sorted(path for folder in sys.argv[1:] for path in Path(folder).rglob("*.jpg")):
        symbols = encode_images(coder, [np.asarray(Image.open(path).convert("RGB"))], STEP, "cpu")
        found.append(likeness_features(dequantise(symbols, width.numpy()[None], np.array([zero])), coder))
    whitening, path = fit_whitening(np.concatenate(found)), checkpoints.BUNDLED_FOLDER / WHITENING
    tensors = {"mean": whitening.mean, "directions": whitening.directions}
    safetensors.numpy.save_file({k: np.ascontiguousarray(v, np.float16) for k, v in tensors.items()}, path)
    print(f"{len(found):,} images: {path}")


if __name__ == "__main__":
    main()
