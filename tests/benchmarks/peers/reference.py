"""Compute the reference of a sample of images in float32, one image at a time: `reference.py WORKLOAD OUT.npz FILE…`."""

import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from work import QUALITY, SIGMA, STEP, SUBSAMPLING, gives_latents, network


def main() -> None:
    workload, out, *paths = sys.argv[1:]
    model, made = network(workload), {}
    for path in paths:
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None]
        h, w = pixels.shape[2:]
        x = pixels.float() / 255
        with torch.inference_mode():
            if gives_latents(workload):
                made[Path(path).name] = model.encode_symbols(x, torch.tensor([STEP]))[0].to(torch.int8).numpy()
                continue
            x = torch.nn.functional.pad(x, (0, -w % model.stride, 0, -h % model.stride), mode="replicate")
            y = model(x, torch.tensor([SIGMA / 255]))[0, :, :h, :w].clamp(0, 1).mul(255).round().to(torch.uint8)
        written = io.BytesIO()
        Image.fromarray(y.permute(1, 2, 0).contiguous().numpy()).save(
            written, "JPEG", quality=QUALITY, subsampling=SUBSAMPLING
        )
        made[Path(path).name] = np.asarray(Image.open(written))
    np.savez(out, **made)


if __name__ == "__main__":
    main()
