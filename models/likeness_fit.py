"""Fit the whitening that comes with the product. Run: python -m models.likeness_fit FOLDER …"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models import checkpoint as checkpoints
from models.likeness import BUNDLED, features, save, whitening_of
from models.objectives.compress import latents_of

STEP = 26.0


def main() -> None:
    torch.set_num_threads(1)
    coder = checkpoints.build(*checkpoints.read("compress-small"))
    width, zero = coder.lattice(STEP)
    found = []
    for path in sorted(path for folder in sys.argv[1:] for path in Path(folder).rglob("*.jpg")):
        symbols = latents_of(coder, [np.asarray(Image.open(path).convert("RGB"))], STEP, "cpu")
        values = (symbols.astype(np.float32) - zero) * width.view(-1, 1, 1).numpy()
        found.append(features(values, coder))
    save(whitening_of(np.concatenate(found)), BUNDLED)
    print(f"{len(found):,} images: {BUNDLED}")


if __name__ == "__main__":
    main()
