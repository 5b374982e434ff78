"""Parameters of tasks that run networks from images to images."""

from typing import ClassVar, Literal

from pydantic import Field

from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.models.tasks.task import Params


class ImageParams(Params):
    """Parameters of a task that runs networks from images to images."""

    ADDED: ClassVar[frozenset[str]] = frozenset({"ensemble", "tile"})

    tile: Literal["auto", "approximate"] = Field(
        "auto",
        description="Process images as the card of the checkpoint says (auto), or cut large images into tiles that overlap, "
        "and blend the tiles (approximate). Choose approximate for a network that takes whole images only. The result "
        "differs from that of the whole image.",
    )
    ensemble: bool = Field(
        False,
        description="Process each image in all eight flips and quarter turns, and return the mean: slightly better, in "
        "eight times the time.",
    )


def check_tile(name: str, card: Card, params: ImageParams) -> None:
    """Refuse approximate tiles for a network whose tiles give the result of the whole image.

    Raises:
        CheckpointError: when the network is such a network.
    """
    if params.tile == "approximate" and (card.contract is None or card.contract.tiling == "exact"):
        raise CheckpointError(
            f"params.tile='approximate': tiles of checkpoint {name} already give the result of the whole image. Omit tile"
        )
