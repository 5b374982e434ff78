"""What `imagemill models import` knows about a network after it has recognised and measured it."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from imagemill.models.card import Route
from imagemill.models.contract import Contract


@dataclass(frozen=True)
class Recognised:
    """A network and its weights.

    Attributes:
        route: which library defines the network.
        library: name and version of the library.
        architecture: as in `card.Card`.
        tensors: the weights, in their own number formats.
        contract: how the network is called, as measured.
        tasks: what the network can be used for, the default first.
        parameters: keyword arguments of the architecture.
        code_sha256: digest of the code of a user.
        must_resemble_input: whether a result that does not resemble its input proves that the network was taken for another.
    """

    route: Route
    library: str
    architecture: str
    tensors: dict[str, Tensor]
    contract: Contract
    tasks: tuple[str, ...]
    parameters: dict[str, Any] = field(default_factory=dict)
    code_sha256: str | None = None
    must_resemble_input: bool = False
