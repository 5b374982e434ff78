"""Checkpoints: folders with `weights.safetensors` and `card.json`. Pickles are refused, because loading them runs code."""

import hashlib
import json
import math
import secrets
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError, describe_error, shorten_error

BUNDLED_FOLDER = Path(__file__).parent / "checkpoints"
WEIGHTS, CARD = "weights.safetensors", "card.json"
SCHEMES = ("file", "s3")
PICKLES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin")


def bundled_names() -> list[str]:
    """Return the names of the checkpoints that are part of the package."""
    return sorted(path.parent.name for path in BUNDLED_FOLDER.glob(f"*/{CARD}"))


def locate(name_or_url: str) -> str:
    """Return the URL or absolute path of the checkpoint folder that a bundled name, a folder or a URL names.

    Raises:
        CheckpointError: when `name_or_url` is none of these, or names pickled weights.
    """
    if name_or_url.lower().endswith(PICKLES):
        raise CheckpointError(
            f"checkpoint {name_or_url}: pickled weights are refused. Give a folder with {WEIGHTS} and {CARD}"
        )
    if "://" in name_or_url:
        scheme = name_or_url.split("://")[0]
        if scheme not in SCHEMES:
            raise CheckpointError(f"checkpoint {name_or_url}: unsupported scheme {scheme!r}. Valid: {', '.join(SCHEMES)}")
        return name_or_url.rstrip("/")
    if (BUNDLED_FOLDER / name_or_url / CARD).is_file() and "/" not in name_or_url:
        return str(BUNDLED_FOLDER / name_or_url)
    if Path(name_or_url).is_dir():
        return str(Path(name_or_url).resolve())
    raise CheckpointError(
        f"checkpoint {name_or_url!r}: not found. Give a folder, a URL, or one of the bundled names: "
        f"{', '.join(bundled_names()) or 'none'}"
    )


def read_file(url: str, name: str, storage_options: dict[str, Any]) -> bytes:
    """Return the content of a file in a checkpoint folder.

    Raises:
        CheckpointError: when the file is missing or unreadable.
    """
    try:
        if not url.startswith("s3://"):
            return Path(url.removeprefix("file://"), name).read_bytes()
        import fsspec

        with fsspec.open(f"{url}/{name}", "rb", **storage_options) as f:
            data: bytes = f.read()
            return data
    except FileNotFoundError as e:
        raise CheckpointError(f"checkpoint {url}: {name} is missing") from e
    except Exception as e:  # storage clients raise many types of errors
        raise CheckpointError(f"checkpoint {url}: {name} cannot be read: {describe_error(e)}") from e


def read_card(name_or_url: str, storage_options: dict[str, Any] | None = None) -> Card:
    """Read the card alone, without weights and without importing torch.

    Raises:
        CheckpointError: when the card is missing or invalid.
    """
    url = locate(name_or_url)
    try:
        return Card.model_validate_json(read_file(url, CARD, storage_options or {}))
    except ValidationError as e:
        raise CheckpointError(f"checkpoint {url}: {CARD}: {describe_problems(e)}") from e


def describe_problems(error: ValidationError) -> str:
    """Return all problems of a card in one line: first the missing fields, then the invalid ones."""
    problems = [(".".join(map(str, problem["loc"])), problem) for problem in error.errors()]
    missing = [key for key, problem in problems if problem["type"] == "missing"]
    invalid = [f"{key}: {problem['msg']}" if key else problem["msg"] for key, problem in problems if key not in missing]
    fields = f"missing {'field' if len(missing) == 1 else 'fields'} {', '.join(missing)}"
    advice = ". Write a checkpoint folder with `imagemill models import`" if missing else ""
    return "; ".join([*([fields] if missing else []), *invalid]) + advice


def read_weights(name_or_url: str, card: Card, storage_options: dict[str, Any] | None = None) -> bytes:
    """Return the bytes of weights.safetensors.

    Raises:
        CheckpointError: when the file is missing or its digest differs from that of the card.
    """
    url = locate(name_or_url)
    data = read_file(url, WEIGHTS, storage_options or {})
    check_digest(data, card, url)
    return data


def read(name_or_url: str, storage_options: dict[str, Any] | None = None) -> tuple[Card, bytes]:
    """Read the card and the weights of a checkpoint, or of a network of `models.style_networks`.

    Raises:
        CheckpointError: when the checkpoint is missing, damaged or pickled.
    """
    folder, _, name = name_or_url.rpartition("/")
    if name.startswith("vgg19") and name.endswith(".pth"):
        from imagemill.models.style_networks import convert_vgg19

        folder = folder or ("/" if name_or_url.startswith("/") else ".")
        return convert_vgg19(name_or_url, read_file(locate(folder), name, storage_options or {}))
    if name_or_url == "random":
        from imagemill.models.style_networks import build_random_network

        return build_random_network()
    card = read_card(name_or_url, storage_options)
    return card, read_weights(name_or_url, card, storage_options)


def check_digest(weights: bytes, card: Card, url: str) -> None:
    """Compare the SHA-256 of weights with that of the card.

    Raises:
        CheckpointError: when they differ.
    """
    digest = hashlib.sha256(weights).hexdigest()
    if digest != card.sha256:
        raise CheckpointError(
            f"checkpoint {url}: {WEIGHTS} has sha256 {digest[:16]}…, but {CARD} says {card.sha256[:16]}…. "
            "Copy both files again"
        )


def build(card: Card, weights: bytes) -> Any:
    """Build the network that a card describes, with its weights in float32, in evaluation mode.

    Raises:
        CheckpointError: when the architecture is unknown or the weights do not fit.
    """
    import safetensors
    import safetensors.torch

    from imagemill.models.routes import ROUTES

    try:
        tensors = safetensors.torch.load(weights)
        model = ROUTES[card.route](card, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
    except (TypeError, ValueError, LookupError, RuntimeError, safetensors.SafetensorError) as e:
        raise CheckpointError(f"checkpoint {card.name}: weights do not fit {card.architecture}: {shorten_error(e)}") from e
    return model.eval().requires_grad_(False)


def load_model(card: Card, weights: bytes, device: str) -> Any:
    """Build the autoencoder and put it on a device, as runs use it.

    Raises:
        CheckpointError: when the architecture is unknown or the weights do not fit.
    """
    import torch

    # TF32 changes the last bits, and a later `decode` must give the same pixels as the run.
    torch.backends.cudnn.allow_tf32 = False
    model = build(card, weights)
    return model.to(device, memory_format=model.memory_format)


def save(url: str, model: Any, card: dict[str, Any], storage_options: dict[str, Any] | None = None) -> Card:
    """Write a checkpoint folder: weights in float16 (integers such as entropy tables unchanged), then the card.

    A writer that is killed between the two files leaves weights that an existing card does not match, which readers refuse.

    Args:
        url: folder of the checkpoint, local or on S3.
        model: the network whose state is saved.
        card: fields of the card without `sha256`.
        storage_options: arguments of fsspec.

    Returns:
        The complete card.
    """
    import safetensors.torch

    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    weights = safetensors.torch.save({k: v.contiguous() for k, v in state.items()})
    complete = Card(**card, sha256=hashlib.sha256(weights).hexdigest())
    write(url, complete, weights, storage_options or {})
    return complete


def write(url: str, card: Card, weights: bytes, storage_options: dict[str, Any]) -> None:
    """Write a checkpoint folder: the weights, then the card."""
    write_file(url, WEIGHTS, weights, storage_options)
    write_card(url, card, storage_options)


def write_metrics(name_or_url: str, entry: dict[str, Any], storage_options: dict[str, Any] | None = None) -> None:
    """Add an entry to the metrics of a card, in place of an entry with the same `set` and `params`.

    Raises:
        CheckpointError: when the card is missing or cannot be written.
    """
    card = read_card(name_or_url, storage_options)
    other_entries = [old for old in card.metrics if any(old.get(key) != entry.get(key) for key in ("set", "params"))]
    changed = card.model_copy(update={"metrics": [*other_entries, entry]})
    url = locate(name_or_url)
    try:
        write_card(url, changed, storage_options or {})
    except Exception as e:  # storage clients raise many types of errors
        raise CheckpointError(f"checkpoint {url}: {CARD} cannot be written: {describe_error(e)}") from e


def write_card(url: str, card: Card, storage_options: dict[str, Any]) -> None:
    """Write card.json; figures that are not finite become null, because JSON has no infinity."""
    text = json.dumps(replace_non_finite(card.model_dump()), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_file(url, CARD, text.encode(), storage_options)


def replace_non_finite(value: Any) -> Any:
    """Replace floats that are not finite by None in nested dicts and lists, for example the PSNR of equal images."""
    if isinstance(value, dict):
        return {key: replace_non_finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [replace_non_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_file(url: str, name: str, data: bytes, storage_options: dict[str, Any]) -> None:
    """Write a file atomically: one PUT on S3, a temporary file and a rename on a local disk."""
    if url.startswith("s3://"):
        import fsspec

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
