"""The ways to a network, by the key `route` of a card. Each builds the network of a card with its weights."""

from collections.abc import Callable

from torch import Tensor

from imagemill.models.autoencoder import Network
from imagemill.models.card import Card, Route
from imagemill.models.routes import bundled_route, diffusers_route, python_route, spandrel_route

ROUTES: dict[Route, Callable[[Card, dict[str, Tensor]], Network]] = {
    "diffusers": diffusers_route.build,
    "imagemill": bundled_route.build,
    "python": python_route.build,
    "spandrel": spandrel_route.build,
}
