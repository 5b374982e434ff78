"""Restore: apply a network that returns an image of the same size, such as one that removes blur or JPEG artefacts."""

from typing import Any

from imagemill.models.card import Card
from imagemill.models.tasks.image_params import ImageParams, check_tile
from imagemill.models.tasks.task import Task


class Restore(Task):
    """Apply a network that returns an image of the same size."""

    name = "restore"
    summary = "Apply your own network that returns images of the same size, for example against blur or JPEG artefacts."
    default_checkpoint = None
    Params = ImageParams
    report_crops = True

    def check_card(self, name: str, card: Card, params: Any) -> None:
        """Refuse a tiling that the network does not need."""
        check_tile(name, card, params)
