"""Networks that are no checkpoint of ours, as checkpoints: torchvision's VGG-19, and random weights."""

import hashlib
import io
import pickle
from typing import Any

import safetensors.torch
import torch

from imagemill.models.architectures.perceptual import Perceptual
from imagemill.models.card import Card, CheckpointError

VGG19_SHA256 = "dcbb9e9d"
"""How the digest of torchvision's file begins; its name says so too."""
VGG19_SHAPE: dict[str, Any] = {"widths": [64, 128, 256, 512, 512], "convs": [2, 2, 4, 4, 1], "decoder": False}
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
RANDOM = "random"
RANDOM_SHAPE: dict[str, Any] = {"widths": [32, 64, 128, 256], "convs": [1, 2, 2, 1], "decoder": False}


def read_vgg19(url: str, data: bytes) -> tuple[Card, bytes]:
    """torchvision's VGG-19 (Simonyan and Zisserman 2015) up to relu5_1, from the bytes of vgg19-dcbb9e9d.pth.

    Raises: CheckpointError when it is another file.
    """
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(VGG19_SHA256):
        raise CheckpointError(
            f"checkpoint {url}: sha256 begins with {digest[:8]}, that of torchvision's VGG-19 with {VGG19_SHA256}: "
            "it is another file, or damaged. Other pickled weights are refused"
        )
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        net = Perceptual(**VGG19_SHAPE)
        # In torchvision's list of layers a convolution is followed by its ReLU, and a block by its pooling.
        index = 0
        for name in net.layers:
            index += name.endswith("_1") and name != net.layers[0]
            for part in ("weight", "bias"):
                net.encoder[name].get_parameter(part).data.copy_(state[f"features.{index}.{part}"])
            index += 2
    except (pickle.UnpicklingError, LookupError, RuntimeError, TypeError, AttributeError) as e:
        raise CheckpointError(
            f"checkpoint {url}: not the weights of torchvision's VGG-19: {type(e).__name__}: {e}"
        ) from None
    return to_checkpoint(net, "vgg19", VGG19_SHAPE | IMAGENET, "ImageNet, by torchvision (IMAGENET1K_V1)")


def build_random_network() -> tuple[Card, bytes]:
    """A network of the shape of ours with random weights, always the same (Ustyuzhaninov et al. 2016)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Perceptual(**RANDOM_SHAPE)
    return to_checkpoint(net, RANDOM, RANDOM_SHAPE, "nothing: its weights are random")


def to_checkpoint(net: Perceptual, name: str, parameters: dict[str, Any], data: str) -> tuple[Card, bytes]:
    weights = safetensors.torch.save({key: value.half().contiguous() for key, value in net.state_dict().items()})
    card = Card(
        name=name,
        task="stylize",
        architecture="perceptual",
        parameters=parameters,
        data=data,
        sha256=hashlib.sha256(weights).hexdigest(),
    )
    return card, weights
