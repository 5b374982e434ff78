"""Autoencoders of the library diffusers: AutoencoderKL, AutoencoderTiny, AutoencoderDC and others of their interface."""

from typing import Any

from torch import Tensor, nn

from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError, describe_error
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.models.routes.measure import measure_coder
from imagemill.models.routes.recognised import Recognised
from imagemill.models.routes.weights import load_weights
from imagemill.models.tasks.card_checks import tasks_of
from imagemill.models.type_checks import require_value

MISSING = "needs the library diffusers. Run: pip install 'imagemill[diffusers]'"
INPUT_RANGE = (-1.0, 1.0)
"""Black and white in all autoencoders of diffusers."""


def build(card: Card, tensors: dict[str, Tensor]) -> FloatCoder:
    """Build the autoencoder of a card with its weights.

    Args:
        card: its `architecture` is the name of the class, and its `parameters` are the library's config.
        tensors: the weights.

    Raises:
        CheckpointError: when diffusers is not installed or has no such autoencoder, or the weights do not fit.
    """
    module = build_module(card.architecture, card.parameters)
    load_weights(module, tensors, card.architecture)
    return FloatCoder(module, require_value(card.contract, "the contract"), encode_module, decode_module)


def recognise(config: dict[str, Any], tensors: dict[str, Tensor]) -> Recognised:
    """Build the autoencoder of a diffusers folder and measure it.

    Args:
        config: the content of config.json.
        tensors: the weights.

    Raises:
        CheckpointError: when diffusers is not installed, or the folder does not hold an autoencoder for images.
    """
    name = config["_class_name"]
    module = build_module(name, config)
    # Weights of older versions have other names, which the library itself changes when it loads them.
    if rename := getattr(module, "_fix_state_dict_keys_on_load", None):
        rename(tensors)
    load_weights(module, tensors, name)
    import diffusers

    factors = {key: config[key] for key in ("scaling_factor", "shift_factor") if config.get(key) is not None}
    try:
        contract = measure_coder(module, encode_module, decode_module, INPUT_RANGE, **factors)
    except CheckpointError as e:
        raise CheckpointError(f"{name}: {e}") from None
    except Exception as e:  # noqa: BLE001 - autoencoders for video and sound raise anything when they get an image
        raise CheckpointError(f"{name}: does not encode images to latents: {describe_error(e)}") from None
    parameters = {key: value for key, value in config.items() if not key.startswith("_")}
    library = f"diffusers {diffusers.__version__}"
    return Recognised("diffusers", library, name, tensors, contract, tasks_of(contract), parameters)


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
    # Configs hold keys that a version of the library does not use, and the library warns of each.
    diffusers.utils.logging.set_verbosity_error()
    cls = getattr(diffusers, name, None) if name.startswith("Autoencoder") else None
    if cls is None:
        raise CheckpointError(f"diffusers {diffusers.__version__} has no autoencoder {name!r}. Upgrade diffusers")
    try:
        module: nn.Module = cls.from_config(config)
    except Exception as e:  # noqa: BLE001 - a wrong value in a config makes the library raise anything
        raise CheckpointError(f"{name}: cannot be built from its config: {describe_error(e)}") from None
    return module.eval()


def encode_module(module: nn.Module, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the mode of the latents, and the standard deviation of each value if the encoder returns a distribution."""
    result = module.encode(x_BCHW, return_dict=False)[0]  # type: ignore[operator]
    return (result, None) if isinstance(result, Tensor) else (result.mode(), result.std)


def decode_module(module: nn.Module, z_Bchw: Tensor) -> Tensor:
    """Decode latents."""
    images: Tensor = module.decode(z_Bchw, return_dict=False)[0]  # type: ignore[operator]
    return images
