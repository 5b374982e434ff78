"""The checkpoint that lies in OUTPUT beside what it made."""

from typing import TYPE_CHECKING

from models import checkpoint as checkpoints
from pipeline.storage import Store

if TYPE_CHECKING:
    from models.autoencoder import Autoencoder


def keep_checkpoint(output: Store, card: checkpoints.Card, weights: bytes) -> None:
    """Put a checkpoint beside what it makes: every worker can read it there, and OUTPUT stays decodable by itself."""
    folder = checkpoint_folder(card.sha256)
    if not output.exists(f"{folder}/{checkpoints.CARD}"):
        output.write(f"{folder}/{checkpoints.WEIGHTS}", weights)
        output.write(f"{folder}/{checkpoints.CARD}", card.model_dump_json(indent=2).encode())


def checkpoint_folder(sha256: str) -> str:
    return f"checkpoints/{sha256[:16]}"


def kept_model(output: Store, sha256: str, device: str) -> "Autoencoder":
    """The model that `keep_checkpoint` left in OUTPUT, on a device. Raises: CheckpointError."""
    folder = checkpoint_folder(sha256)
    try:
        card = checkpoints.Card.model_validate_json(output.read(f"{folder}/{checkpoints.CARD}"))
        weights = output.read(f"{folder}/{checkpoints.WEIGHTS}")
    except FileNotFoundError as e:
        raise checkpoints.CheckpointError(f"{output.uri(folder)}: the checkpoint that made the rows is missing") from e
    checkpoints.check(weights, card, output.uri(folder))
    import torch

    # TF32 would move the last bits, and a later `decode` must give what the run did.
    torch.backends.cudnn.allow_tf32 = False
    return checkpoints.build(card, weights).to(device, memory_format=torch.channels_last)
