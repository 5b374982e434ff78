"""Networks that users define: a class of an importable Python module."""

import importlib
import inspect
from typing import Any

from torch import Tensor, nn

from imagemill.models.autoencoder import Network
from imagemill.models.card import Card
from imagemill.models.code_check import check_user_code, source_digest
from imagemill.models.code_permission import user_module_path
from imagemill.models.contract import Contract
from imagemill.models.errors import CheckpointError, describe_error
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.models.routes.image_network import ImageNetwork, call_module
from imagemill.models.routes.measure import measure_coder, measure_image_network
from imagemill.models.routes.recognised import Recognised
from imagemill.models.routes.weights import load_weights
from imagemill.models.tasks.card_checks import tasks_of

NOISE_PARAMETERS = ("sigma", "sigmas", "noise", "noise_level", "noise_levels")
"""Names of the second parameter of `forward` that takes the noise levels (B,) of the images."""


def build(card: Card, tensors: dict[str, Tensor]) -> Network:
    """Build the network of a card with its weights.

    Args:
        card: its `architecture` is MODULE:CLASS, and its `parameters` are the arguments of the class.
        tensors: the weights.

    Raises:
        CheckpointError: when there is no permission to import code, the class cannot be imported, its code has changed since
            the import of the checkpoint, or the weights do not fit.
    """
    check_user_code(card)
    cls = import_class(card.architecture)
    module = build_module(cls, card.architecture, card.parameters)
    if card.contract is None and isinstance(module, Network):
        # The class says how it is called. Its weights may include entropy tables.
        module.load_state_dict(tensors)
        return module
    if card.contract is None:
        raise CheckpointError(f"checkpoint {card.name}: card.json has no contract. Run `imagemill models import` again")
    contract = card.contract
    load_weights(module, tensors, card.architecture)
    return FloatCoder(module, contract, encode_module, decode_module) if contract.latent else ImageNetwork(module, contract)


def recognise(
    name: str,
    parameters: dict[str, Any],
    tensors: dict[str, Tensor],
    input_range: tuple[float, float],
    task: str | None,
) -> Recognised:
    """Build the network of a class with its weights and measure it. The caller has permitted the import of its code.

    Args:
        name: MODULE:CLASS.
        parameters: arguments of the class.
        tensors: the weights.
        input_range: the values of black and white that the network takes and returns.
        task: what the network is imported for; decides which methods are used if the class has all of them.

    Raises:
        CheckpointError: when the class cannot be used, or the weights do not fit.
    """
    code_sha256 = source_digest(name)
    cls = import_class(name)
    uses_latents = has_latents(cls) and (task in (None, "compress") or not maps_images(cls))
    if not uses_latents and not maps_images(cls):
        raise CheckpointError(f"architecture {name}: must define forward, or encode and decode")
    takes_level = not uses_latents and takes_noise_level(cls, name)
    module = build_module(cls, name, parameters)
    load_weights(module, tensors, name)
    try:
        if uses_latents:
            contract = measure_coder(module, encode_module, decode_module, input_range)
        else:
            contract = measure_image_planes(module, Contract(input_range=input_range, noise_level=takes_level))
    except CheckpointError as e:
        raise CheckpointError(f"architecture {name}: {e}") from None
    except Exception as e:  # noqa: BLE001 - code of users may raise anything
        raise CheckpointError(f"architecture {name}: fails for an image: {describe_error(e)}") from None
    package = name.partition(":")[0].partition(".")[0]
    return Recognised("python", package, name, tensors, contract, tasks_of(contract), parameters, code_sha256=code_sha256)


def measure_image_planes(module: nn.Module, contract: Contract) -> Contract:
    """Measure a network that takes three planes, or else one.

    Raises:
        Exception: what the network raises for images of three planes, if it takes neither.
    """
    try:
        return measure_image_network(module, call_module, contract)
    except Exception:
        try:
            return measure_image_network(module, call_module, contract.model_copy(update={"channels": 1}))
        except Exception:  # noqa: BLE001 - the first error says more
            pass
        raise


def import_class(name: str) -> type[nn.Module]:
    """Import a subclass of nn.Module by MODULE:CLASS. The caller has checked the permission.

    Raises:
        CheckpointError: when there is no such class.
    """
    module_name, _, class_name = name.partition(":")
    if not module_name or not class_name:
        raise CheckpointError(f"architecture {name!r}: must be MODULE:CLASS, such as my_package.nets:TinyDenoiser")
    try:
        with user_module_path():
            module = importlib.import_module(module_name)
    except Exception as e:  # noqa: BLE001 - code of users may raise anything
        raise CheckpointError(f"architecture {name}: cannot be imported: {describe_error(e)}") from None
    cls = getattr(module, class_name, None)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        classes = [
            key
            for key, value in vars(module).items()
            if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module_name
        ]
        problem = "is not a subclass of torch.nn.Module" if cls is not None else "does not exist"
        raise CheckpointError(f"architecture {name}: {problem}. Valid: {', '.join(classes) or 'none'}")
    return cls


def build_module(cls: type[nn.Module], name: str, parameters: dict[str, Any]) -> nn.Module:
    """Create a network with random weights.

    Raises:
        CheckpointError: when the class does not accept the parameters.
    """
    signature = inspect.signature(cls)
    takes_any = any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values())
    unknown = [] if takes_any else [key for key in parameters if key not in signature.parameters]
    try:
        signature.bind(**{key: value for key, value in parameters.items() if key not in unknown})
        problem = ""
    except TypeError as e:
        problem = str(e)
    if unknown or problem:
        problems = [f"unknown arguments: {', '.join(unknown)}"] if unknown else []
        problems += [problem] if problem else []
        advice = f"The class takes {signature}: pass --argument KEY=VALUE, or set parameters in YAML"
        raise CheckpointError(f"architecture {name}: {'; '.join(problems)}. {advice}")
    try:
        return cls(**parameters).eval()
    except Exception as e:  # noqa: BLE001 - code of users may raise anything
        raise CheckpointError(f"architecture {name}: cannot be created with {parameters}: {describe_error(e)}") from None


def has_latents(cls: type[nn.Module]) -> bool:
    """Return whether a class encodes images to latents and decodes them."""
    return callable(getattr(cls, "encode", None)) and callable(getattr(cls, "decode", None))


def maps_images(cls: type[nn.Module]) -> bool:
    """Return whether a class defines `forward`."""
    return cls.forward is not nn.Module.forward


def takes_noise_level(cls: type[nn.Module], name: str) -> bool:
    """Return whether `forward` takes the noise levels as its second parameter.

    Raises:
        CheckpointError: when `forward` requires another parameter.
    """
    own = list(inspect.signature(cls.forward).parameters.values())[1:]
    fixed = [p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_level = len(fixed) > 1 and fixed[1].name in NOISE_PARAMETERS
    required = [p.name for p in fixed[1 + takes_level :] if p.default is p.empty]
    if not fixed or required:
        raise CheckpointError(
            f"architecture {name}: forward requires {', '.join(required) or 'no image'}. It must take the images, and may "
            f"take the noise levels as a second parameter with one of the names {', '.join(NOISE_PARAMETERS)}"
        )
    return takes_level


def encode_module(module: Any, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the latents, or the mode and the standard deviation of a distribution with `mode()` and `std`."""
    result = module.encode(x_BCHW)
    return (result, None) if isinstance(result, Tensor) else (result.mode(), result.std)


def decode_module(module: Any, z_Bchw: Tensor) -> Tensor:
    """Decode latents."""
    images: Tensor = module.decode(z_Bchw)
    return images
