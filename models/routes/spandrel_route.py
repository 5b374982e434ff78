"""Restoration networks of the community that the library spandrel recognises by their weights."""

from typing import Any

import torch
from torch import Tensor, nn

from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.models.routes.image_network import DEFAULT_SIGMA, Call, ImageNetwork
from imagemill.models.type_checks import require_value

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
        return MAIN_REGISTRY[architecture].architecture.load(tensors)
    try:
        return ModelLoader(device="cpu").load_from_state_dict(tensors)
    except UnsupportedModelError:
        raise CheckpointError("spandrel does not recognise the weights") from None


def takes_noise_level(descriptor: Any) -> bool:
    """Return whether a network takes the noise level of its images."""
    return descriptor.architecture.id in NOISE_MAPS or "FDnCNN" in descriptor.tags


def caller(descriptor: Any) -> Call:
    """Return a function that calls the network of a descriptor as spandrel does, with the padding that it needs."""
    from spandrel.__helpers.size_req import pad_tensor

    def call(module: nn.Module, x_BCHW: Tensor, sigma_B: Tensor | None) -> Tensor:
        _, x = pad_tensor(x_BCHW, descriptor.size_requirements)
        if takes_noise_level(descriptor):
            sigma_B = x.new_full((len(x),), DEFAULT_SIGMA) if sigma_B is None else sigma_B.to(x.dtype)
            y = module(torch.cat([x, sigma_B.view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1))
        else:
            y = descriptor._call_fn(module, x)
        h, w = (n * descriptor.scale for n in x_BCHW.shape[2:])
        return y[..., :h, :w]

    return call
