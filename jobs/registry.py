"""What there is to run: tasks, architectures, checkpoints; and all that is known about one checkpoint."""

import inspect
import json
from typing import Any

from rich.table import Table

from imagemill.jobs.console import console, number
from imagemill.jobs.evaluate import text
from imagemill.models import checkpoint as checkpoints
from imagemill.models.architectures import ARCHITECTURES
from imagemill.models.autoencoder import Autoencoder
from imagemill.models.card import Card
from imagemill.models.objectives import OBJECTIVES
from imagemill.models.tasks import TASKS
from imagemill.pipeline.storage import StorageConfig

SPOKEN = ("set", "headline", "table")
"""Keys of a metrics entry that have a place of their own."""


def show_registry() -> None:
    tasks = Table("task", "does", "parameters", "checkpoint", title="tasks", title_justify="left")
    for name, task in TASKS.items():
        tasks.add_row(name, purpose(type(task)), ", ".join(task.Params.model_fields), task.default_checkpoint)
    architectures = Table(
        "architecture", "is", "parameters", "stride", "learns", title="architectures", title_justify="left"
    )
    for name, architecture in ARCHITECTURES.items():
        model = architecture()
        learns = ", ".join(task for task, objective in OBJECTIVES.items() if issubclass(architecture, objective.learned_by))
        architectures.add_row(name, purpose(architecture), f"{parameter_count(model):,}", str(model.stride), learns)
    bundled = Table(
        "checkpoint", "task", "architecture", "parameters", "kB", "measured", "set",
        title="bundled checkpoints", title_justify="left",
    )  # fmt: skip
    for name in checkpoints.bundled_names():
        card = checkpoints.read_card(name)
        weights = checkpoints.read_weights(name, card)
        count = parameter_count(checkpoints.build(card, weights))
        best, measured_on = headline(card)
        row = (name, card.task, card.architecture, f"{count:,}", f"{len(weights) / 1000:.0f}", best, measured_on)
        bundled.add_row(*row)
    for table in (tasks, architectures, bundled):
        console.print(table)


def purpose(thing: type[Any]) -> str:
    """The first line of the file that defines it, which says what it is."""
    return (inspect.getdoc(inspect.getmodule(thing)) or "").splitlines()[0]


def parameter_count(model: Autoencoder) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def headline(card: Card) -> tuple[str, str]:
    """One figure of a card and the set that it was measured on: what `evaluate` found before what training saw."""
    for entry in card.metrics:
        if "headline" in entry:
            return entry["headline"], f"{entry['set']}, {number(entry['images'], 'image')}"
    for entry in card.metrics:
        if "psnr_db" in entry:
            return f"{entry['psnr_db']:.2f} dB", str(entry.get("set", ""))
    return "", ""


def show_checkpoint(name_or_url: str, storage: StorageConfig) -> None:
    """The card, the layers, and every figure with its set. Raises: CheckpointError."""
    card, weights = checkpoints.read(name_or_url, storage.options_for(name_or_url))
    model = checkpoints.build(card, weights)
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in (
        ("name", card.name),
        ("task", card.task),
        ("architecture", f"{card.architecture} {in_words(card.parameters)}".strip()),
        ("weights", f"{len(weights):,} bytes, sha256 {card.sha256}"),
        ("preprocessing", in_words(card.preprocessing)),
        ("trained on", card.data or "not said"),
        ("training", in_words(card.training)),
    ):
        facts.add_row(key, value)
    console.print(facts)
    console.print(layers(model), soft_wrap=True)
    for entry in card.metrics:
        facts_of_it = {key: value for key, value in entry.items() if key not in SPOKEN}
        console.print(f"{entry.get('set', 'a set without a name')}: {entry.get('headline', '')} {in_words(facts_of_it)}")
        lines = entry.get("table") or []
        # Lines of one kind together: a card keeps those of all tables of an evaluation.
        for columns in dict.fromkeys(tuple(line) for line in lines):
            table = Table(*columns)
            for line in lines:
                if tuple(line) == columns:
                    table.add_row(*(text(line[column]) for column in columns))
            console.print(table)


def in_words(facts: dict[str, Any]) -> str:
    """Keys and values in one line."""
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in facts.items())


def layers(model: Autoencoder) -> str:
    """The table of layers, their outputs and their parameters, for the input that suits the architecture."""
    from torchinfo import summary

    columns = ("output_size", "num_params", "kernel_size")
    # Frozen weights would stand in brackets.
    model.requires_grad_(True)
    return str(summary(model, input_size=(1, *model.example), col_names=columns, depth=4, verbose=0, device="cpu"))
