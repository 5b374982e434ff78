"""Measure how well near copies are found: by latents (models.likeness) and by perceptual hashes (imagehash), on equal pairs.

Run: python tests/benchmarks/near_copies.py PHOTOS [DISTRACTORS …]

Each photo below PHOTOS is changed in ten ways. Each copy has to find its photo among all photos and distractors. Pairs of
copy and image are then ordered by distance, which gives precision at equal recall.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import torch
from PIL import Image, ImageEnhance

from imagemill.models import checkpoint as checkpoints
from imagemill.models import pooling
from imagemill.models.latents import encode_images
from imagemill.models.likeness import fit_whitening, likeness_features, similarity
from imagemill.pipeline.output.latent_values import dequantise

STEP = 26.0
HASHES = ("phash", "dhash", "whash", "average_hash")
RECALLS = (0.8, 0.9, 0.95)


def crop(image: Image.Image, area: float, rng: np.random.Generator) -> Image.Image:
    w, h = (round(side * area**0.5) for side in image.size)
    x, y = rng.integers(image.width - w + 1), rng.integers(image.height - h + 1)
    return image.crop((x, y, x + w, y + h))


def scaled(image: Image.Image, factor: float) -> Image.Image:
    return image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("RGB")


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


CHANGES: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "crop 75 %": lambda image, rng: crop(image, 0.75, rng),
    "crop 50 %": lambda image, rng: crop(image, 0.5, rng),
    "0.5×": lambda image, rng: scaled(image, 0.5),
    "1.5×": lambda image, rng: scaled(image, 1.5),
    "JPEG q30": lambda image, rng: jpeg(image, 30),
    "flip": lambda image, rng: mirrored(image),
    "brighter": lambda image, rng: ImageEnhance.Brightness(image).enhance(1.3),
    "flatter": lambda image, rng: ImageEnhance.Contrast(image).enhance(0.7),
    "gray": lambda image, rng: image.convert("L").convert("RGB"),
    "all": lambda image, rng: jpeg(scaled(mirrored(crop(image, 0.75, rng)), 0.5), 30),
}


class Descriptors:
    """Return the vector or hash of an image for each method."""

    def __init__(self) -> None:
        card, weights = checkpoints.read("compress-small")
        self.coder = checkpoints.build(card, weights)
        width, self.zero = self.coder.dequantisation(STEP)
        self.width = width.numpy()

    def __call__(self, image: Image.Image) -> dict[str, np.ndarray]:
        symbols = encode_images(self.coder, [np.asarray(image)], STEP, "cpu")
        latents = dequantise(symbols, self.width[None], np.array([self.zero]))
        found = {"features": likeness_features(latents, self.coder)[0]}
        found |= {f"latent, {name}": pooling.POOLS[name](latents)[0] for name in ("mean", "gem")}
        for name in HASHES:
            found[name] = getattr(imagehash, name)(image).hash.ravel()
            found[f"{name}, mirrored"] = getattr(imagehash, name)(mirrored(image)).hash.ravel()
        return found


def report(name: str, distances: dict[str, np.ndarray], photos: int) -> None:
    """Return a row of the table from (queries, images) distances: recall@1 per change and overall, precision at recalls."""
    own = np.arange(photos)
    recall = [float(np.mean(d.argmin(1) == own)) for d in distances.values()]
    every = np.concatenate(list(distances.values()))
    right = np.zeros_like(every, bool)
    right[np.arange(len(every)), np.tile(own, len(distances))] = True
    true, false = np.sort(every[right]), np.sort(every[~right])
    precision = []
    for share in RECALLS:
        reached = true[int(np.ceil(share * len(true))) - 1]
        hits = np.searchsorted(true, reached, "right")
        precision.append(hits / (hits + np.searchsorted(false, reached, "right")))
    row = [f"{100 * value:.1f}" for value in (*recall, np.mean(recall))] + [f"{value:.3f}" for value in precision]
    print(f"| {name} | " + " | ".join(row) + " |", flush=True)


def unlike(queries: np.ndarray, images: np.ndarray) -> np.ndarray:
    return 1 - similarity(queries, images)


def main() -> None:
    torch.set_num_threads(1)
    folders = [Path(folder) for folder in sys.argv[1:]]
    files = [sorted(path for path in folder.rglob("*") if path.suffix in (".jpg", ".png")) for folder in folders]
    photos, describe = len(files[0]), Descriptors()
    images = [describe(Image.open(path).convert("RGB")) for paths in files for path in paths]
    copies = {
        change: [describe(make(Image.open(p).convert("RGB"), np.random.default_rng([n, 7]))) for n, p in enumerate(files[0])]
        for change, make in CHANGES.items()
    }

    def column(found: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
        return np.stack([one[name] for one in found]).astype(np.float32)

    print(f"{photos} photos, {len(images) - photos} distractors, {photos * len(CHANGES)} copies; recall@1 in %\n")
    print("| vector | " + " | ".join([*CHANGES, "mean", *(f"precision at recall {r}" for r in RECALLS)]) + " |")
    print("|---" * (len(CHANGES) + 2 + len(RECALLS)) + "|")
    whiten = fit_whitening(column(images, "features"))
    own = {
        change: unlike(whiten(column(found, "features")), whiten(column(images, "features")))
        for change, found in copies.items()
    }
    report("likeness", own, photos)
    for name in ("features", "latent, mean", "latent, gem"):
        mean, spread = column(images, name).mean(0), column(images, name).std(0) + 1e-6
        scaled_images = (column(images, name) - mean) / spread
        report(
            f"{name}, standardised",
            {change: unlike((column(found, name) - mean) / spread, scaled_images) for change, found in copies.items()},
            photos,
        )
    for name in HASHES:
        once = {change: unlike(column(found, name), column(images, name)) for change, found in copies.items()}
        other = {c: unlike(column(found, f"{name}, mirrored"), column(images, name)) for c, found in copies.items()}
        report(name, once, photos)
        report(f"{name}, and mirrored", {change: np.minimum(once[change], other[change]) for change in copies}, photos)
    print("\n| similarity at least | recall | precision | false pairs |\n|---|---|---|---|")
    for threshold in (0.5, 0.6, 0.65, 0.7, 0.75, 0.8):
        taken = [distance <= 1 - threshold for distance in own.values()]
        hits = sum(int(np.trace(found[:, :photos])) for found in taken)
        pairs = sum(int(found.sum()) for found in taken)
        recall = hits / (photos * len(CHANGES))
        print(f"| {threshold} | {recall:.3f} | {hits / max(1, pairs):.4f} | {pairs - hits:,} |")


if __name__ == "__main__":
    main()
