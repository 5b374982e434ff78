"""Daft tuned for CPUs: encoded bytes go to one process per core, and Arrow comes back."""

from pathlib import Path

import daft
import numpy as np
import pyarrow as pa
from daft import DataType, Series, col
from daft.functions import download
from work import PROCESSES, Tuned, arguments, batches, gives_latents, lists_of, stamp

WORKLOAD, SOURCE, OUTPUT = arguments()
AT_ONCE = 64


@daft.cls(max_concurrency=PROCESSES, use_process=True)
class Model:
    def __init__(self) -> None:
        self.tuned = Tuned(WORKLOAD)

    @daft.method.batch(return_dtype=DataType.list(DataType.uint8()), batch_size=AT_ONCE)
    def latents(self, path: Series, data: Series) -> pa.Array:
        values: list[np.ndarray] = []
        for _, images in batches(zip(path.to_pylist(), data.to_pylist(), strict=True), self.tuned):
            values += self.tuned.run(images)
            stamp(OUTPUT, len(images))
        return lists_of(values)

    @daft.method.batch(return_dtype=DataType.string(), batch_size=AT_ONCE)
    def denoised(self, path: Series, data: Series) -> pa.Array:
        targets: list[str] = []
        for names, images in batches(zip(path.to_pylist(), data.to_pylist(), strict=True), self.tuned):
            for name, image in zip(names, self.tuned.run(images), strict=True):
                target = OUTPUT / "images" / Path(name).name
                target.write_bytes(self.tuned.encode(image))
                targets.append(str(target))
            stamp(OUTPUT, len(images))
        return pa.array(targets)


if __name__ == "__main__":
    model = Model()
    # Listed files are one partition; smaller ones give both instances work from the start.
    df = daft.from_glob_path(f"{SOURCE}/*.jpg").into_batches(AT_ONCE)
    data = download(col("path"))
    if gives_latents(WORKLOAD):
        df = df.with_column("latent", model.latents(col("path"), data)).select("path", "latent")
    else:
        df = df.with_column("output", model.denoised(col("path"), data)).select("path", "output")
    df.write_parquet(str(OUTPUT / "rows"), compression="zstd")
