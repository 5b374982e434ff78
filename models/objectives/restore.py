"""Restore: apply an imported network that returns images of the same size."""

from typing import Any

from imagemill.models.autoencoder import Network
from imagemill.models.objectives.image_networks import process_images
from imagemill.models.objectives.objective import TaskObjective
from imagemill.models.precision import Precision
from imagemill.models.routes.image_network import ImageNetwork
from imagemill.models.tasks.task import Output, Sample
from imagemill.models.tasks.tiled import TiledParams
from imagemill.models.type_checks import require_type


class Restore(TaskObjective):
    """Apply imported networks. There is nothing to train, because the damage is not known."""

    network_types = (ImageNetwork,)

    def predict(self, model: Network, samples: list[Sample], params: Any, precision: Precision) -> list[Output]:
        """Apply the network to each image."""
        model, params = require_type(model, ImageNetwork), require_type(params, TiledParams)
        return [Output(image) for image in process_images(model, [s.rgb for s in samples], params.tile, precision)]
