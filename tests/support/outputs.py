"""Outputs of `compress` created in this process: task, rows and parts are the product's; only Ray is left out."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from PIL import Image

from imagemill.models import checkpoint as checkpoints
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Sample
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.images.encode import encode_rgb
from imagemill.pipeline.output.output_names import decoded_name
from imagemill.pipeline.output.stored_checkpoint import load_stored_model, store_checkpoint
from imagemill.pipeline.parquet_part import parquet_bytes
from imagemill.pipeline.schema import image_id, pack_latent, part_name, result_schema, version_of
from imagemill.pipeline.storage import Store

COMPRESS = TASKS["compress"]
COUNT = 8
"""Images of the fixture `pieces`."""


def compressed(
    folder: Path,
    images: dict[str, np.ndarray],
    checkpoint: str = "conv-mnist",
    fence: int = 1,
    rows_per_part: int = 5,
    reconstruct: bool = False,
    **params: Any,
) -> Store:
    """Images (H,W,3) uint8 by name, as PNG in folder/in; their latents, as of day `fence` of March, in folder/out.

    Args: reconstruct: lay what they decode to into folder/reconstructed, as the run computed it.
    """
    torch.set_num_threads(1)
    output = Store(str(folder / "out"))
    card, weights = checkpoints.read(checkpoint)
    store_checkpoint(output, card, weights)
    model, asked = load_stored_model(output, card.sha256, "cpu"), COMPRESS.Params(**params)
    config = RunConfig(task="compress", input=str(folder / "in"), output=output.url, checkpoint=checkpoint, params=params)
    day = datetime(2026, 3, fence, 1, tzinfo=UTC)
    run = {"run_id": f"{day:%Y%m%dT%H%M%SZ}-{fence:06x}", "fence": fence, "task": "compress", "model_id": card.name}
    run |= {"checkpoint_sha256": card.sha256, "parameters": json.dumps(asked.model_dump(), sort_keys=True)}
    rows = []
    for name, rgb in images.items():
        path = folder / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(path, "PNG")
        [made] = TASK_OBJECTIVES["compress"].predict(model, [Sample(rgb)], asked, Precision("cpu", torch.float32))
        assert made.latent is not None
        if reconstruct:
            Store(str(folder / "reconstructed")).write(decoded_name(name), encode_rgb(made.image, "PNG"))
        size = {"orig_height": rgb.shape[0], "orig_width": rgb.shape[1], "exif_orientation": 1, "bit_depth": 8}
        etag = hashlib.md5(rgb.tobytes()).hexdigest()
        content = {"content_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        identity = {"image_id": image_id(name), "rel_path": name, "source_uri": str(path), "source_etag": etag}
        version = version_of(card.sha256, asked.model_dump())(etag)
        rows.append({**identity, **content, "version": version, **size, **run, "encoded_at": day, **made.columns,
                     "bits_per_pixel": 1.0, **pack_latent(made.latent, made.payload)})  # fmt: skip
    table = pa.Table.from_pylist(rows, result_schema(COMPRESS.columns, stores_latent=True))
    for start in range(0, len(table), rows_per_part):
        part = table.slice(start, rows_per_part)
        output.write(f"results/{part_name(part)}", parquet_bytes(part, 3))
    output.write(f"runs/{run['run_id']}/config.yaml", yaml.safe_dump(config.model_dump(mode="json")).encode())
    record = {**run, "input": config.input, "planned": len(rows), "ok": len(rows), "exit_reason": "done"}
    output.write(f"runs/{run['run_id']}/run.json", json.dumps(record).encode())
    return output
