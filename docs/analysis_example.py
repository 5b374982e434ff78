"""Latents at work, from start to end: load, compare with PCA, cluster, find neighbours.

python docs/analysis_example.py OUTPUT INPUT

OUTPUT holds latents of one size with at least a hundred images (28×28 digits through conv-mnist, say), INPUT the images.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from imagemill.jobs.decode import decode_output
from imagemill.pipeline import read_latents
from imagemill.pipeline.output.output_names import decoded_name
from imagemill.pipeline.storage import Store


def luma(path: Path) -> np.ndarray:
    """(H·W,) float in [0,1]."""
    return np.asarray(Image.open(path).convert("L"), np.float32).ravel() / 255


def main(output: str, images: str) -> None:
    # Load: rows as Arrow, latents as an array (N,C,h,w), in the same order.
    codes = read_latents(output, columns=["rel_path"])
    rows, latents = codes.arrow(), codes.numpy()
    names = rows["rel_path"].to_pylist()
    vectors = latents.reshape(len(latents), -1)
    print(f"{len(latents)} latents of {'×'.join(map(str, latents.shape[1:]))}, {vectors.shape[1]} values each")

    # PCA against the autoencoder at equal dimensions. The first half of the images is what PCA learns from, and as many of
    # its components as there are values, or images, are kept.
    decode_output(Store(output), Store(f"{output}-decoded"))
    originals = np.stack([luma(Path(images) / name) for name in names])
    decoded = np.stack([luma(Path(f"{output}-decoded") / decoded_name(name)) for name in names])
    half = len(names) // 2
    size = min(vectors.shape[1], half - 1)
    pca = PCA(size).fit(originals[:half])
    rebuilt = pca.inverse_transform(pca.transform(originals[half:]))
    print(f"mean squared error of {len(names) - half} images that PCA has not seen")
    print(f"  autoencoder, {vectors.shape[1]} values  {np.mean((decoded[half:] - originals[half:]) ** 2):.5f}")
    print(f"  PCA, {size} values          {np.mean((rebuilt - originals[half:]) ** 2):.5f}")

    # k-means on the latents, each channel in units of its own deviation.
    scaled = (latents / (latents.std((0, 2, 3), keepdims=True) + 1e-6)).reshape(len(latents), -1)
    clusters = KMeans(5, n_init=4, random_state=0).fit(scaled)
    print(f"clusters of {', '.join(map(str, np.bincount(clusters.labels_, minlength=5)))} images")

    # Nearest neighbours; the first is the image itself.
    near = NearestNeighbors(n_neighbors=4).fit(scaled)
    _, places = near.kneighbors(scaled[:3])
    for first, *others in places.tolist():
        print(f"nearest to {names[first]}: {', '.join(names[place] for place in others)}")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2])
