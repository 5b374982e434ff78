"""Analyse latents: load them, compare them with PCA, cluster them, find nearest neighbours.

Run: python docs/analysis_example.py OUTPUT INPUT

OUTPUT is the output of `imagemill compress` with at least a hundred latents of one size, for example 28×28 digits through
conv-mnist. INPUT holds the images. Needs scikit-learn. Decoded images are written to OUTPUT-decoded.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from imagemill import read_latents
from imagemill.jobs.decode import decode_output
from imagemill.pipeline.output.output_names import decoded_name
from imagemill.pipeline.storage import Store


def read_luma(path: Path) -> np.ndarray:
    """Return the luma of an image, (H·W,) float in [0,1]."""
    return np.asarray(Image.open(path).convert("L"), np.float32).ravel() / 255


def main(output: str, images: str) -> None:
    """Print the comparison with PCA, the sizes of five clusters, and nearest neighbours.

    Args:
        output: the output of a compress run.
        images: the folder of its input.
    """
    # Load the rows as an Arrow table and the latents as an array (N,C,h,w), in the same order.
    codes = read_latents(output, columns=["rel_path"])
    rows, latents = codes.arrow(), codes.numpy()
    names = rows["rel_path"].to_pylist()
    vectors = latents.reshape(len(latents), -1)
    print(f"{len(latents)} latents of {'×'.join(map(str, latents.shape[1:]))}, {vectors.shape[1]} values each")

    # Compare PCA with the autoencoder at equal dimensions. PCA is fitted to the first half of the images, which limits the
    # number of its components.
    decode_output(Store(output), Store(f"{output}-decoded"))
    originals = np.stack([read_luma(Path(images) / name) for name in names])
    decoded = np.stack([read_luma(Path(f"{output}-decoded") / decoded_name(name)) for name in names])
    half = len(names) // 2
    size = min(vectors.shape[1], half - 1)
    pca = PCA(size).fit(originals[:half])
    rebuilt = pca.inverse_transform(pca.transform(originals[half:]))
    print(f"mean squared error of the {len(names) - half} images that PCA was not fitted to")
    print(f"  autoencoder, {vectors.shape[1]} values  {np.mean((decoded[half:] - originals[half:]) ** 2):.5f}")
    print(f"  PCA, {size} values          {np.mean((rebuilt - originals[half:]) ** 2):.5f}")

    # Cluster the latents by k-means, with each channel in units of its standard deviation.
    scaled = (latents / (latents.std((0, 2, 3), keepdims=True) + 1e-6)).reshape(len(latents), -1)
    clusters = KMeans(5, n_init=4, random_state=0).fit(scaled)
    print(f"clusters of {', '.join(map(str, np.bincount(clusters.labels_, minlength=5)))} images")

    # Find nearest neighbours. The first neighbour of an image is the image itself.
    neighbours = NearestNeighbors(n_neighbors=4).fit(scaled)
    _, indices = neighbours.kneighbors(scaled[:3])
    for first, *nearest in indices.tolist():
        print(f"nearest to {names[first]}: {', '.join(names[index] for index in nearest)}")


if __name__ == "__main__":
    main(sys.argv[1].rstrip("/"), sys.argv[2])
