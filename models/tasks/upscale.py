"""Upscale: enlarge images by the scale of the checkpoint, sharper than bicubic interpolation."""

from typing import Any

from imagemill.models.card import Card
from imagemill.models.tasks.image_params import ImageParams, check_tile
from imagemill.models.tasks.task import Task


class Upscale(Task):
    """Enlarge images."""

    name = "upscale"
    summary = "Enlarge images to twice their width and height, or by the scale of the checkpoint."
    default_checkpoint = "upscale-small"
    Params = ImageParams
    columns = {"scale": int}
    report_crops = True

    def check_card(self, name: str, card: Card, params: Any) -> None:
        """Refuse a tiling that the network does not need."""
        check_tile(name, card, params)
