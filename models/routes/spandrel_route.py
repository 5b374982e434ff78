"""Networks of the community that the library spandrel recognises by their weights: for restoration, and to fill holes."""

from typing import Any

import torch
from torch import Tensor, nn

from imagemill.models.card import Card
from imagemill.models.contract import Contract
from imagemill.models.errors import CheckpointError, describe_error
from imagemill.models.routes.image_network import DEFAULT_SIGMA, Call, ImageNetwork
from imagemill.models.routes.measure import add_costs, image_run
from imagemill.models.routes.recognised import Recognised
from imagemill.models.tasks.card_checks import tasks_of
from imagemill.models.type_checks import require_value

DENOISERS = ("DnCNN", "DRUNet")
"""Networks whose purpose is to remove Gaussian noise."""
OTHER_ARCHITECTURE = (
    "If the weights are not of this architecture, import them with --architecture MODULE:CLASS, where the class defines it"
)
NOISE_MAPS = ("DRUNet", "FDnCNN")
"""Networks that take a map of the noise level as their last channel."""


def build(card: Card, tensors: dict[str, Tensor]) -> ImageNetwork:
    """Build the network of a card with its weights.

    Args:
        card: its `architecture` is the name that spandrel gives it.
        tensors: the weights.

    Raises:
        CheckpointError: when spandrel is not installed or does not know the architecture.
        RuntimeError: when the weights do not fit.
    """
    contract = require_value(card.contract, "the contract")
    descriptor = load_descriptor(tensors, card.architecture)
    return ImageNetwork(descriptor.model, contract, caller(descriptor), pads=True)


def recognise(tensors: dict[str, Tensor]) -> Recognised:
    """Recognise a network by its weights and measure it.

    Raises:
        CheckpointError: when spandrel is not installed, or does not recognise the weights as a network that a task runs.
    """
    descriptor = load_descriptor(tensors)
    import spandrel

    name = descriptor.architecture.id
    takes_mask = isinstance(descriptor, spandrel.MaskedImageModelDescriptor)
    planes = {descriptor.input_channels, descriptor.output_channels}
    if planes not in ({1}, {3}) or (takes_mask and planes != {3}):
        raise CheckpointError(
            f"spandrel takes the weights for {name} with {descriptor.input_channels} channels in and "
            f"{descriptor.output_channels} out, but images have 3{'' if takes_mask else ' or 1'}. {OTHER_ARCHITECTURE}"
        )
    contract = Contract(
        channels=planes.pop(), scale=descriptor.scale, noise_level=takes_noise_level(descriptor), mask=takes_mask
    )
    needs = descriptor.size_requirements
    run = image_run(descriptor.model.eval(), caller(descriptor), contract)
    try:
        contract = add_costs(run, contract, needs.multiple_of, max(1, needs.minimum), pads=True)
    except Exception as e:  # noqa: BLE001 - a network with the weights of another one raises anything
        raise CheckpointError(
            f"spandrel takes the weights for {name}, which fails with them: {describe_error(e)}. {OTHER_ARCHITECTURE}"
        ) from None
    tasks = tasks_of(contract)
    if name in DENOISERS:
        tasks = tuple(sorted(tasks))
    return Recognised(
        "spandrel", f"spandrel {spandrel.__version__}", name, tensors, contract, tasks, must_resemble_input=not takes_mask
    )


def load_descriptor(tensors: dict[str, Tensor], architecture: str | None = None) -> Any:
    """Return spandrel's descriptor of a state dict.

    Args:
        tensors: the state dict.
        architecture: the name of the architecture; recognised by the weights when absent.

    Raises:
        CheckpointError: when spandrel is not installed, or does not know the architecture.
    """
    try:
        from spandrel import MAIN_REGISTRY, ModelLoader, UnsupportedModelError
    except ImportError:
        raise CheckpointError("the network needs the library spandrel. Run: pip install 'imagemill[spandrel]'") from None
    if architecture is not None:
        if architecture not in MAIN_REGISTRY:
            raise CheckpointError(f"spandrel does not know the architecture {architecture!r}. Upgrade spandrel")
        return MAIN_REGISTRY[architecture].architecture.load(dict(tensors))
    try:
        return ModelLoader(device="cpu").load_from_state_dict(dict(tensors))
    except UnsupportedModelError:
        raise CheckpointError(
            "spandrel does not recognise the weights. If you have the code of the network, pass "
            "--architecture MODULE:CLASS and --code FOLDER"
        ) from None
    except Exception as e:  # noqa: BLE001 - weights that resemble those of an architecture make its code raise anything
        raise CheckpointError(f"spandrel cannot build the network: {describe_error(e)}") from None


def takes_noise_level(descriptor: Any) -> bool:
    """Return whether a network takes the noise level of its images."""
    return descriptor.architecture.id in NOISE_MAPS or "FDnCNN" in descriptor.tags


def caller(descriptor: Any) -> Call:
    """Return a function that calls the network of a descriptor as spandrel does, with the padding that it needs."""
    from spandrel import MaskedImageModelDescriptor
    from spandrel.__helpers.size_req import pad_tensor

    takes_mask = isinstance(descriptor, MaskedImageModelDescriptor)

    def call(module: nn.Module, x_BCHW: Tensor, level: Tensor | None) -> Tensor:
        _, x = pad_tensor(x_BCHW, descriptor.size_requirements)
        if takes_mask:
            _, mask_B1HW = pad_tensor(require_value(level, "the mask"), descriptor.size_requirements)
            y = descriptor._call_fn(module, x, mask_B1HW)
        elif takes_noise_level(descriptor):
            sigma_B = x.new_full((len(x),), DEFAULT_SIGMA) if level is None else level.to(x.dtype)
            y = module(torch.cat([x, sigma_B.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1))
        else:
            y = descriptor._call_fn(module, x)
        h, w = (n * descriptor.scale for n in x_BCHW.shape[2:])
        return y[..., :h, :w]

    return call
