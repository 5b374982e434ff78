"""Daft like in its documentation: list, download, decode, a class with a batch method, write."""

import daft
import numpy as np
import torch
from daft import DataType, Series, col
from daft.functions import decode_image, download
from PIL import Image
from work import SIGMA, STEP, arguments, gives_latents, network, saved, stamp

WORKLOAD, SOURCE, OUTPUT = arguments()


@daft.cls
class Model:
    def __init__(self) -> None:
        self.model = network(WORKLOAD)

    @daft.method.batch(return_dtype=DataType.list(DataType.int8()), batch_size=32)
    def latents(self, image: Series) -> list:
        x = pixels_of(image)
        with torch.no_grad():
            y = self.model.encode_symbols(x, torch.full((len(x),), STEP)).to(torch.int8).flatten(1).numpy()
        stamp(OUTPUT, len(x))
        return list(y)

    @daft.method.batch(return_dtype=DataType.string(), batch_size=32)
    def denoised(self, path: Series, image: Series) -> list:
        x = pixels_of(image)
        with torch.no_grad():
            y = self.model(x, torch.full((len(x),), SIGMA / 255)).clamp(0, 1).mul(255).round().to(torch.uint8)
        images = [Image.fromarray(pixels) for pixels in y.permute(0, 2, 3, 1).contiguous().numpy()]
        stamp(OUTPUT, len(x))
        return [saved(OUTPUT, p, i) for p, i in zip(path.to_pylist(), images, strict=True)]


def pixels_of(image: Series) -> torch.Tensor:
    """Return a batch (B,3,H,W) float in [0,1]."""
    return torch.from_numpy(np.stack(image.to_pylist())).permute(0, 3, 1, 2).float() / 255


if __name__ == "__main__":
    model = Model()
    df = daft.from_glob_path(f"{SOURCE}/*.jpg").with_column("image", decode_image(download(col("path")), mode="RGB"))
    if gives_latents(WORKLOAD):
        df = df.with_column("latent", model.latents(col("image"))).select("path", "latent")
    else:
        df = df.with_column("output", model.denoised(col("path"), col("image"))).select("path", "output")
    df.write_parquet(str(OUTPUT / "rows"))
