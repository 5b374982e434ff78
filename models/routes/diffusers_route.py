"""Autoencoders of the library diffusers: AutoencoderKL, AutoencoderTiny, AutoencoderDC and others of their interface."""

from typing import Any

from torch import Tensor, nn

from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.models.type_checks import require_value

MISSING = "needs the library diffusers. Run: pip install 'imagemill[diffusers]'"


def build(card: Card, tensors: dict[str, Tensor]) -> FloatCoder:
    """Build the autoencoder of a card with its weights.

    Args:
        card: its `architecture` is the name of the class, and its `parameters` are the library's config.
        tensors: the weights.

    Raises:
        CheckpointError: when diffusers is not installed or has no such autoencoder.
        RuntimeError: when the weights do not fit.
    """
    module = build_module(card.architecture, card.parameters)
    module.load_state_dict(tensors)
    return FloatCoder(module, require_value(card.contract, "the contract"), encode_module, decode_module)


def build_module(name: str, config: dict[str, Any]) -> nn.Module:
    """Build an autoencoder with random weights.

    Args:
        name: the class in diffusers.
        config: the content of config.json.

    Raises:
        CheckpointError: when diffusers is not installed or has no such autoencoder.
    """
    try:
        import diffusers
    except ImportError:
        raise CheckpointError(f"{name} {MISSING}") from None
    cls = getattr(diffusers, name, None) if name.startswith("Autoencoder") else None
    if cls is None:
        raise CheckpointError(f"diffusers {diffusers.__version__} has no autoencoder {name!r}. Upgrade diffusers")
    module: nn.Module = cls.from_config(config)
    return module.eval()


def encode_module(module: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the mode of the latents, and the standard deviation of each value if the encoder returns a distribution."""
    result = module.encode(x_BCHW, return_dict=False)[0]  # type: ignore[operator]
    return (result, None) if isinstance(result, Tensor) else (result.mode(), result.std)


def decode_module(module: nn.Module, z_Bchw: Tensor) -> Tensor:
    """Decode latents."""
    images: Tensor = module.decode(z_Bchw, return_dict=False)[0]  # type: ignore[operator]
    return images
