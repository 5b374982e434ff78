"""Networks that measure style and are not checkpoint folders: torchvision's VGG-19, and a network with random weights.

Both become checkpoints of the architecture `perceptual`, so that a run stores them in OUTPUT like any other checkpoint.
"""

import hashlib
import io
import pickle
from typing import Any

import safetensors.torch
import torch
from torch import nn

from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError

VGG19_SHA256 = "dcbb9e9d"
"""First digits of the SHA-256 of torchvision's file, which are part of its name."""
VGG19_SHAPE: dict[str, Any] = {"widths": [64, 128, 256, 512, 512], "convs": [2, 2, 4, 4, 1], "decoder": False}
"""VGG-19 up to relu5_1."""
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
RANDOM = "random"
RANDOM_SHAPE: dict[str, Any] = {"widths": [32, 64, 128, 256], "convs": [1, 2, 2, 1], "decoder": False}


def convert_vgg19(url: str, data: bytes) -> tuple[Card, bytes]:
    """Convert torchvision's VGG-19 (Simonyan and Zisserman 2015) up to relu5_1.

    Args:
        url: where the file comes from, for error messages.
        data: the bytes of vgg19-dcbb9e9d.pth.

    Returns:
        The card and the weights in safetensors format.

    Raises:
        CheckpointError: when the bytes are not those of torchvision's file.
    """
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(VGG19_SHA256):
        raise CheckpointError(
            f"checkpoint {url}: sha256 begins with {digest[:8]}, but that of torchvision's VGG-19 begins with "
            f"{VGG19_SHA256}. Download the file again; other pickled weights are refused"
        )
    # Only this function needs torchvision, whose import takes 2 s.
    from torchvision.models import vgg19

    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        with torch.device("meta"):
            features = vgg19(weights=None).features
        prefix = "features."
        features.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}, assign=True)
        network = Perceptual(**VGG19_SHAPE)
        convolutions = (layer for layer in features if isinstance(layer, nn.Conv2d))
        for name, convolution in zip(network.layers, convolutions, strict=False):
            network.encoder[name].load_state_dict(convolution.state_dict())
    except (pickle.UnpicklingError, LookupError, RuntimeError, TypeError, AttributeError) as e:
        raise CheckpointError(
            f"checkpoint {url}: not the weights of torchvision's VGG-19: {type(e).__name__}: {e}"
        ) from None
    return to_checkpoint(network, "vgg19", VGG19_SHAPE | IMAGENET, "ImageNet, by torchvision (IMAGENET1K_V1)")


def build_random_network() -> tuple[Card, bytes]:
    """Build the network with random weights, the same ones in each call (Ustyuzhaninov et al. 2016)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Perceptual(**RANDOM_SHAPE)
    return to_checkpoint(network, RANDOM, RANDOM_SHAPE, "nothing: its weights are random")


def to_checkpoint(network: Perceptual, name: str, parameters: dict[str, Any], data: str) -> tuple[Card, bytes]:
    """Return the card of a network for `stylize`, and its weights in float16 as safetensors."""
    weights = safetensors.torch.save({key: value.half().contiguous() for key, value in network.state_dict().items()})
    card = Card(
        name=name,
        task="stylize",
        architecture="perceptual",
        parameters=parameters,
        data=data,
        sha256=hashlib.sha256(weights).hexdigest(),
    )
    return card, weights
