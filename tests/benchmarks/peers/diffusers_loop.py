"""Encode a folder of photos with diffusers, as trainers cache latents: one npz for each image.

Run: python diffusers_loop.py VAE PHOTOS OUTPUT PROCESSES. The cores are divided among the processes.
"""

import multiprocessing
import os
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

BATCH = 4


def encode(vae_folder: str, photos: str, output: str, rank: int, processes: int) -> None:
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    paths = sorted(Path(photos).iterdir())[rank::processes]
    for start in range(0, len(paths), BATCH):
        batch = paths[start : start + BATCH]
        images = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in batch])
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            latents = vae.encode(x).latent_dist.mode().numpy()
        for path, latent in zip(batch, latents, strict=True):
            np.savez(f"{output}/{path.stem}.npz", latents=latent)


if __name__ == "__main__":
    vae_folder, photos, output, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=encode, args=(vae_folder, photos, output, rank, count)) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    raise SystemExit(max(worker.exitcode or 0 for worker in workers))
