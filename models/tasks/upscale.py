"""Upscale: enlarge images by the scale of the checkpoint, sharper than bicubic interpolation."""

from typing import Any

from imagemill.models.card import Card
from imagemill.models.tasks.task import Task
from imagemill.models.tasks.tiled import TiledParams, check_tile


class Upscale(Task):
    """Enlarge images."""

    name = "upscale"
    summary = "Enlarge images to twice their width and height, or by the scale of the checkpoint."
    default_checkpoint = "upscale-small"
    Params = TiledParams
    columns = {"scale": int}
    report_crops = True

    def check_card(self, name: str, card: Card, params: Any) -> None:
        """Refuse a tiling that the network does not need."""
        check_tile(name, card, params)
