"""Checkpoints of imported networks with small random weights, as `imagemill models import` writes them."""

import hashlib
import importlib
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from imagemill.models import checkpoint
from imagemill.models.card import Card
from imagemill.models.contract import Contract
from imagemill.models.routes.image_network import ImageNetwork
from imagemill.pipeline.engines.local_engine import run_worker
from imagemill.pipeline.worker_job import WorkerJob


class Blur(nn.Module):
    """A residual network without normalisation: exact tiles."""

    def __init__(self, width: int = 8, scale: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3 * scale**2, 3, padding=1)
        )
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.shuffle(self.layers(x))


class Normalised(Blur):
    """Statistics of the whole image, so that no tile gives the result of the whole image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers((x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 0.1)) / 10


class TakesLevel(nn.Module):
    """Moves an image towards gray by the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.gray = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return torch.lerp(x, self.gray.expand_as(x), sigma.view(-1, 1, 1, 1))


def python_card(task: str, **contract: Any) -> Card:
    """Return the card of a user's module. No test builds the module from it."""
    return Card(
        name="mine",
        task=task,
        route="python",
        architecture="mine:Network",
        contract=Contract(**contract),
        code_sha256="0",
        sha256="0",
    )


def python_network(module: nn.Module, **contract: Any) -> ImageNetwork:
    """Return a user's module as runs call it."""
    return ImageNetwork(module.eval(), Contract(**contract))


def spandrel_card(module: nn.Module, architecture: str, task: str, **contract: Any) -> tuple[Card, bytes]:
    """Return the card and the weights of a module of spandrel."""
    state = {k: v.contiguous() for k, v in module.state_dict().items()}
    weights = safetensors.torch.save(state)
    digest = hashlib.sha256(weights).hexdigest()
    card = Card(
        name=architecture.lower(),
        task=task,
        route="spandrel",
        architecture=architecture,
        contract=Contract(**contract),
        sha256=digest,
    )
    return card, weights


def write_network(folder: Path, network: tuple[Card, bytes]) -> str:
    """Write a checkpoint folder and return it."""
    card, weights = network
    checkpoint.write_file(str(folder), checkpoint.WEIGHTS, weights, {})
    checkpoint.write_card(str(folder), card, {})
    return str(folder)


def build_network(network: tuple[Card, bytes]) -> ImageNetwork:
    """Build the network of a card."""
    model: ImageNetwork = checkpoint.build(*network)
    return model


def shrink_lama(set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let spandrel build LaMa with few channels and layers in this process.

    spandrel knows one size of LaMa alone, whose weights have 200 MB.
    """
    module = importlib.import_module("spandrel.architectures.LaMa.__arch.LaMa")
    set_attribute(module, "FFCResNetGenerator", partial(module.FFCResNetGenerator, ngf=8, n_blocks=1))


def run_worker_with_small_lama(connection: Connection, job: WorkerJob) -> None:
    """Replace `run_worker` of the local engine in tests."""
    shrink_lama()
    run_worker(connection, job)


def lama() -> nn.Module:
    """Return a LaMa with random weights."""
    from spandrel.architectures.LaMa import LaMa

    torch.manual_seed(0)
    return LaMa(in_nc=4, out_nc=3).eval()
