"""Checkpoints: a folder with `weights.safetensors` and `card.json`. Pickles are refused."""

import hashlib
import json
import math
import secrets
import textwrap
from pathlib import Path
from typing import Any

import fsspec
from pydantic import ValidationError

from imagemill.models.card import Card, CheckpointError

BUNDLED_FOLDER = Path(__file__).parent / "checkpoints"
WEIGHTS, CARD = "weights.safetensors", "card.json"
SCHEMES = ("file", "s3")
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


def bundled_names() -> list[str]:
    """Names of the checkpoints that come with the product."""
    return sorted(p.parent.name for p in BUNDLED_FOLDER.glob(f"*/{CARD}"))


def locate(name_or_url: str) -> str:
    """A bundled name, a folder or a URL to the URL of the checkpoint's folder."""
    if name_or_url.lower().endswith(PICKLES):
        raise CheckpointError(f"checkpoint {name_or_url}: pickled weights are refused; give a folder with {WEIGHTS}")
    if "://" in name_or_url:
        scheme = name_or_url.split("://")[0]
        if scheme not in SCHEMES:
            raise CheckpointError(f"checkpoint {name_or_url}: scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
        return name_or_url.rstrip("/")
    if (BUNDLED_FOLDER / name_or_url / CARD).is_file() and "/" not in name_or_url:
        return str(BUNDLED_FOLDER / name_or_url)
    if Path(name_or_url).is_dir():
        return str(Path(name_or_url).resolve())
    raise CheckpointError(
        f"checkpoint {name_or_url!r} is neither a bundled one ({', '.join(bundled_names()) or 'none'}) nor a folder nor a "
        "URL"
    )


def shorten_error(error: Exception) -> str:
    return textwrap.shorten(str(error), 300)


def read_file(url: str, name: str, storage_options: dict[str, Any]) -> bytes:
    try:
        with fsspec.open(f"{url}/{name}", "rb", **storage_options) as f:
            data: bytes = f.read()
            return data
    except FileNotFoundError as e:
        raise CheckpointError(f"checkpoint {url}: {name} is missing") from e
    except Exception as e:  # what a store's client raises is open-ended
        raise CheckpointError(f"checkpoint {url}: {name} cannot be read: {type(e).__name__}: {shorten_error(e)}") from e


def read_card(name_or_url: str, storage_options: dict[str, Any] | None = None) -> Card:
    """The card alone; no torch, no weights.

    Raises: CheckpointError when there is none or it cannot be understood.
    """
    url = locate(name_or_url)
    try:
        return Card.model_validate_json(read_file(url, CARD, storage_options or {}))
    except ValidationError as e:
        first = e.errors()[0]
        raise CheckpointError(f"checkpoint {url}: {CARD}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e


def read_weights(name_or_url: str, card: Card, storage_options: dict[str, Any] | None = None) -> bytes:
    """The bytes of weights.safetensors, whose digest is the card's.

    Raises: CheckpointError when they are missing or differ from the card.
    """
    url = locate(name_or_url)
    data = read_file(url, WEIGHTS, storage_options or {})
    check_digest(data, card, url)
    return data


def read(name_or_url: str, storage_options: dict[str, Any] | None = None) -> tuple[Card, bytes]:
    """The card and the bytes of weights.safetensors of a checkpoint, or of one of the networks that `models.foreign` knows.

    Raises: CheckpointError.
    """
    folder, _, name = name_or_url.rpartition("/")
    if name.startswith("vgg19") and name.endswith(".pth"):
        from imagemill.models.style_networks import read_vgg19

        folder = folder or ("/" if name_or_url.startswith("/") else ".")
        return read_vgg19(name_or_url, read_file(locate(folder), name, storage_options or {}))
    if name_or_url == "random":
        from imagemill.models.style_networks import build_random_network

        return build_random_network()
    card = read_card(name_or_url, storage_options)
    return card, read_weights(name_or_url, card, storage_options)


def check_digest(weights: bytes, card: Card, url: str) -> None:
    """Raises: CheckpointError when the digest of the weights is not the card's."""
    digest = hashlib.sha256(weights).hexdigest()
    if digest != card.sha256:
        raise CheckpointError(f"checkpoint {url}: {WEIGHTS} has sha256 {digest[:16]}…, its card says {card.sha256[:16]}…")


def build(card: Card, weights: bytes) -> Any:
    """The Autoencoder that a card describes, with its weights, in eval mode, float32."""
    import safetensors
    import safetensors.torch

    from imagemill.models.architectures import ARCHITECTURES

    if card.architecture not in ARCHITECTURES:
        raise CheckpointError(f"architecture {card.architecture!r} is not one of {', '.join(ARCHITECTURES)}")
    try:
        model = ARCHITECTURES[card.architecture](**card.parameters)
        tensors = safetensors.torch.load(weights)
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except (TypeError, ValueError, LookupError, RuntimeError, safetensors.SafetensorError) as e:
        raise CheckpointError(f"checkpoint {card.name}: weights do not fit {card.architecture}: {shorten_error(e)}") from e
    return model.eval().requires_grad_(False)


def load_model(card: Card, weights: bytes, device: str) -> Any:
    """Build the network and put it on a device, as runs use it.

    Raises:
        CheckpointError: as `build`.
    """
    import torch

    # TF32 changes the last bits, and a later `decode` must give the same pixels as the run.
    torch.backends.cudnn.allow_tf32 = False
    return build(card, weights).to(device, memory_format=torch.channels_last)


def save(url: str, model: Any, card: dict[str, Any], storage_options: dict[str, Any] | None = None) -> Card:
    """Write a checkpoint folder: weights in float16, then the card.

    Where a card lay, and no other came, the weights beside it may be of another digest: a reader refuses them.
    Whole numbers, such as an entropy coder's tables, stay what they are.
    """
    import safetensors.torch

    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    weights = safetensors.torch.save({k: v.contiguous() for k, v in state.items()})
    full = Card(**card, sha256=hashlib.sha256(weights).hexdigest())
    write_file(url, WEIGHTS, weights, storage_options or {})
    write_card(url, full, storage_options or {})
    return full


def write_metrics(name_or_url: str, entry: dict[str, Any], storage_options: dict[str, Any] | None = None) -> None:
    """Put measured figures into a card, in place of those of the same set and parameters.

    Raises: CheckpointError when there is no card, or it cannot be written.
    """
    card = read_card(name_or_url, storage_options)
    replaced = ("set", "params")
    kept = [old for old in card.metrics if any(old.get(key) != entry.get(key) for key in replaced)]
    changed = card.model_copy(update={"metrics": [*kept, entry]})
    url = locate(name_or_url)
    try:
        write_card(url, changed, storage_options or {})
    except Exception as e:  # what a store's client raises is open-ended
        raise CheckpointError(f"checkpoint {url}: {CARD} cannot be written: {type(e).__name__}: {shorten_error(e)}") from e


def write_card(url: str, card: Card, storage_options: dict[str, Any]) -> None:
    text = json.dumps(replace_non_finite(card.model_dump()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(url, CARD, text.encode(), storage_options)


def replace_non_finite(value: Any) -> Any:
    """What is to become JSON, with None for figures that are not finite, as the PSNR of equal images: JSON has none."""
    if isinstance(value, dict):
        return {key: replace_non_finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_file(url: str, name: str, data: bytes, storage_options: dict[str, Any]) -> None:
    """All of it or nothing: one object on S3, a temporary name and a rename on a local disk."""
    if url.startswith("s3://"):
        with fsspec.open(f"{url}/{name}", "wb", **storage_options) as f:
            f.write(data)
        return
    folder = Path(url.removeprefix("file://"))
    temporary = folder / f".{secrets.token_hex(8)}.tmp"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_bytes(data)
        temporary.replace(folder / name)
    finally:
        temporary.unlink(missing_ok=True)
