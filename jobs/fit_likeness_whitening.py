"""Fit the bundled whitening of likeness vectors: `python -m imagemill.jobs.fit_likeness_whitening FOLDER …`."""

import sys
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from PIL import Image

from imagemill.models import checkpoint as checkpoints
from imagemill.models.latents import encode_images
from imagemill.models.likeness import WHITENING, fit_whitening, likeness_features
from imagemill.pipeline.output.latent_values import dequantise

STEP = 26.0


def main() -> None:
    """Encode all JPEGs of the folders, and write the whitening of their features next to the bundled checkpoints."""
    torch.set_num_threads(1)
    coder = checkpoints.build(*checkpoints.read("compress-small"))
    width, zero = coder.dequantisation(STEP)
    features = []
    for path in sorted(path for folder in sys.argv[1:] for path in Path(folder).rglob("*.jpg")):
        symbols = encode_images(coder, [np.asarray(Image.open(path).convert("RGB"))], STEP, "cpu")
        features.append(likeness_features(dequantise(symbols, width.numpy()[None], np.array([zero])), coder))
    whitening, path = fit_whitening(np.concatenate(features)), checkpoints.BUNDLED_FOLDER / WHITENING
    tensors = {"mean": whitening.mean, "directions": whitening.directions}
    safetensors.numpy.save_file({k: np.ascontiguousarray(v, np.float16) for k, v in tensors.items()}, path)
    print(f"{len(features):,} images: {path}")


if __name__ == "__main__":
    main()
