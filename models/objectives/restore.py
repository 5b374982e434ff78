"""Restore: apply or train a network that returns images of the same size."""

from typing import Any

import torch
from torch import Tensor

from imagemill.models.autoencoder import Network
from imagemill.models.batches import round_to_8_bits
from imagemill.models.losses import image_loss, psnr_loss
from imagemill.models.objectives.image_networks import process_images
from imagemill.models.objectives.objective import Objective, TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.routes.image_network import ImageNetwork
from imagemill.models.tasks.image_params import ImageParams
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.type_checks import require_type


class Restore(Objective, TaskObjective):
    """Apply imported networks, and train classes of users, which say themselves what damage they remove."""

    trainable_types = ()
    module_methods = ("forward", "damage")
    network_types = (ImageNetwork,)

    def loss(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Compute the PSNR loss of images that the class damaged."""
        return image_loss(model(damage(model, x_BCHW, generator)), x_BCHW)

    def validate(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Measure the PSNR, and its gain over the damaged image; input and output are rounded to 8 bits."""
        damaged = round_to_8_bits(damage(model, x_BCHW, generator))
        before, after = (-float(psnr_loss(x, x_BCHW)) for x in (damaged, round_to_8_bits(model(damaged))))
        return {"psnr_db": after, "gain_db": after - before}

    def preview(self, model: Network, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the damaged images and the restored ones."""
        damaged = damage(model, x_BCHW, generator)
        return damaged, model(damaged)

    def predict(self, model: Network, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Apply the network to each image."""
        model, params = require_type(model, ImageNetwork), require_type(params, ImageParams)
        return [Output(image) for image in process_images(model, [s.rgb for s in samples], params, precision)]


def damage(model: Network, x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B,3,H,W) in [0,1] with the damage that the class of the user removes.

    Raises:
        ValueError: when the method `damage` returns images of another size.
    """
    module: Any = require_type(model, ImageNetwork).module
    with torch.no_grad():
        damaged: Tensor = module.damage(x_BCHW, generator)
    if damaged.shape != x_BCHW.shape:
        raise ValueError(f"damage returns {tuple(damaged.shape)} for images of {tuple(x_BCHW.shape)}. It must keep the size")
    return damaged
