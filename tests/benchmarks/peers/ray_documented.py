"""Ray Data like in its documentation: read_images → map_batches with a class → write_parquet."""

from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from work import PROCESSES, SIGMA, STEP, arguments, gives_latents, network, saved, stamp


class Model:
    def __init__(self, workload: str, output: Path) -> None:
        self.workload, self.output = workload, output
        self.model = network(workload)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        x = torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            if gives_latents(self.workload):
                y = self.model.encode_symbols(x, torch.full((len(x),), STEP)).to(torch.int8)
                out = {"latent": y.flatten(1).numpy()}
            else:
                y = self.model(x, torch.full((len(x),), SIGMA / 255)).clamp(0, 1).mul(255).round().to(torch.uint8)
                images = [Image.fromarray(pixels) for pixels in y.permute(0, 2, 3, 1).contiguous().numpy()]
                out = {"output": [saved(self.output, p, i) for p, i in zip(batch["path"], images, strict=True)]}
        stamp(self.output, len(x))
        return {"path": batch["path"], **out}


if __name__ == "__main__":
    workload, source, output = arguments()
    dataset = ray.data.read_images(source, mode="RGB", include_paths=True).map_batches(
        Model,
        fn_constructor_args=[workload, output],
        # One CPU runs the model, the others read and write. With an actor on every CPU, Ray Data waits forever.
        compute=ray.data.ActorPoolStrategy(size=max(1, PROCESSES - 1)),
        batch_size=32,
    )
    dataset.write_parquet(str(output / "rows"))
