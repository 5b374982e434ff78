"""A torch DataLoader as people write it: workers decode, the default collate stacks, the main process runs the model."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bucket import members_of, shards_of
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from work import PROCESSES, ROWS, SIGMA, STEP, arguments, gives_latents, network, saved, stamp


class Folder(Dataset):
    def __init__(self, folder: str) -> None:
        self.paths = sorted(map(str, Path(folder).iterdir()))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        path = self.paths[index]
        return pil_to_tensor(Image.open(path).convert("RGB")).float() / 255, path


class Shards(IterableDataset):
    def __init__(self, url: str) -> None:
        self.url, self.shards = url, shards_of(url)

    def __iter__(self):
        worker = get_worker_info()
        for name, data in members_of(self.url, self.shards[worker.id :: worker.num_workers]):
            yield pil_to_tensor(Image.open(io.BytesIO(data)).convert("RGB")).float() / 255, name


def main() -> None:
    workload, source, output = arguments()
    model = network(workload)
    dataset = Shards(source) if workload == "shards" else Folder(source)
    # Images of different sizes cannot be stacked.
    loader = DataLoader(dataset, batch_size=1 if workload == "sizes" else 32, num_workers=PROCESSES)
    rows = []
    for x, paths in loader:
        with torch.no_grad():
            if gives_latents(workload):
                values = [y.ravel() for y in model.encode_symbols(x, torch.full((len(x),), STEP)).to(torch.int8).numpy()]
            else:
                # The network halves its input, so pad to a multiple of its stride and crop the result.
                h, w = x.shape[2:]
                padded = torch.nn.functional.pad(x, (0, -w % model.stride, 0, -h % model.stride), mode="replicate")
                y = (
                    model(padded, torch.full((len(x),), SIGMA / 255))[:, :, :h, :w]
                    .clamp(0, 1)
                    .mul(255)
                    .round()
                    .to(torch.uint8)
                )
                values = [saved(output, path, to_pil_image(image)) for path, image in zip(paths, y, strict=True)]
        rows += [{"path": path, "value": value} for path, value in zip(paths, values, strict=True)]
        stamp(output, len(paths))
    name, kind = ("latent", pa.list_(pa.int8())) if gives_latents(workload) else ("output", pa.string())
    table = pa.Table.from_pylist(rows, pa.schema([("path", pa.string()), ("value", kind)])).rename_columns(["path", name])
    pq.write_table(table, output / "rows.parquet", row_group_size=ROWS, compression="zstd")


if __name__ == "__main__":
    main()
