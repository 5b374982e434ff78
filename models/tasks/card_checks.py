"""Check by its card alone whether a task can use a checkpoint, so that a run is refused before anything starts."""

from imagemill.models.card import Card
from imagemill.models.contract import Contract
from imagemill.models.errors import CheckpointError
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Params, Task

SAME_SIZE = ("restore", "denoise")
"""Tasks that can use any network whose output has the size of its input."""


def tasks_of(contract: Contract) -> tuple[str, ...]:
    """Return the tasks that can use an imported network, the usual one first."""
    if contract.latent:
        return ("compress",)
    if contract.mask:
        return ("inpaint",)
    if contract.scale > 1:
        return ("upscale",)
    return ("denoise",) if contract.noise_level else SAME_SIZE


def tasks_for(card: Card) -> list[str]:
    """Return the tasks that can use the network of a card, first the task that the card names.

    The contract of an imported network decides, because such a network may serve several tasks.
    """
    if card.contract is None:
        return [card.task]
    return sorted(tasks_of(card.contract), key=lambda name: name != card.task)


def describe_network(contract: Contract) -> str:
    """Describe in a few words what an imported network does."""
    if contract.latent:
        return "encodes images to float latents"
    if contract.mask:
        return "fills the pixels that a mask marks"
    if contract.scale > 1:
        return f"enlarges images to {contract.scale} times their width and height"
    return "maps images to images of the same size" + (" and takes their noise level" if contract.noise_level else "")


def check_card(name: str, card: Card, task: Task, params: Params) -> None:
    """Check that a task can use a checkpoint with the given parameters.

    Args:
        name: the checkpoint, for messages.
        card: its card.
        task: the task.
        params: parameters of the task.

    Raises:
        CheckpointError: names the checkpoint, the task, the reason, and what to do instead.
    """
    # A class of a user may say itself how it is called.
    if card.route not in ("imagemill", "python") and card.contract is None:
        raise CheckpointError(f"checkpoint {name}: card.json has no contract. Run `imagemill models import` again")
    able = tasks_for(card)
    if task.name not in able:
        commands = " or ".join(f"`imagemill {each}`" for each in able if each in TASKS)
        advice = f"Use {commands}" if commands else "`imagemill models` lists the checkpoints"
        reason = f"made for the task {card.task}, not {task.name}"
        if card.contract:
            reason = f"{describe_network(card.contract)}, so {task.name} cannot use it"
        raise CheckpointError(f"checkpoint {name}: {reason}. {advice}")
    task.check_card(name, card, params)


def check_dtype(name: str, card: Card, dtype: str | None) -> None:
    """Check the number format that a config asks for.

    Raises:
        CheckpointError: when an imported network gives another result in it than in float32.
    """
    if dtype and card.contract and dtype not in card.contract.dtypes:
        raise CheckpointError(
            f"pool.dtype={dtype!r}: at its import, checkpoint {name} gave another result in this format. Valid: "
            f"{', '.join(card.contract.dtypes)}"
        )
