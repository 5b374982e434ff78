"""List the tasks, architectures and bundled checkpoints, and show one checkpoint."""

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from imagemill.jobs.console import format_figure, number, print_facts, print_json, print_table, print_text
from imagemill.jobs.importing.contract_facts import contract_facts
from imagemill.models import checkpoint as checkpoints
from imagemill.models.architectures.lookup import architecture_names, find_architecture
from imagemill.models.autoencoder import Network
from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.models.objectives import OBJECTIVES
from imagemill.models.tasks import TASKS
from imagemill.pipeline.storage_config import StorageConfig

SHOWN_APART = ("set", "headline", "table")
"""Keys of a metrics entry that are not printed in its line of figures."""
Row = dict[str, Any]


def show_registry(as_json: bool = False) -> None:
    """Print what can be run, as text or as one JSON object.

    The JSON keys are `tasks` (`name`, `description`, `parameters`, `default_checkpoint`), `architectures` (`name`,
    `description`, `parameters`, `stride`, `trains`) and `checkpoints` (`name`, `task`, `architecture`, `parameters`,
    `bytes`, `headline`, `measured_on`).
    """
    tables = {"tasks": list_tasks(), "architectures": list_architectures(), "checkpoints": list_checkpoints()}
    if as_json:
        print_json(tables)
        return
    headings = {"default_checkpoint": "default checkpoint", "measured_on": "measured on"}
    for name, rows in tables.items():
        print_text(f"{name}\n")
        print_table([headings.get(key, key) for key in rows[0]], [list(map(cell, row.values())) for row in rows])
        print_text("")


def cell(value: Any) -> str:
    """Format a value of a listing; lists are joined by commas."""
    return ", ".join(value) if isinstance(value, list) else format_figure(value)


def list_tasks() -> list[Row]:
    """Return the tasks with their parameters and default checkpoints."""
    return [
        {
            "name": name,
            "description": describe(type(task)),
            "parameters": list(task.Params.model_fields),
            "default_checkpoint": task.default_checkpoint,
        }
        for name, task in TASKS.items()
    ]


def list_architectures() -> list[Row]:
    """Return the architectures with the tasks that they can be trained for."""
    rows: list[Row] = []
    for name in architecture_names():
        try:
            architecture = find_architecture(name)
        except CheckpointError as e:
            rows.append({"name": name, "description": str(e), "parameters": None, "stride": None, "trains": []})
            continue
        try:
            model = architecture()
        except TypeError:
            model = None  # A class of another package may require arguments.
        rows.append({
            "name": name,
            "description": describe(architecture),
            "parameters": count_parameters(model) if model else None,
            "stride": model.stride if model else None,
            "trains": [task for task, each in OBJECTIVES.items() if issubclass(architecture, each.trainable_types)],
        })  # fmt: skip
    return rows


def list_checkpoints() -> list[Row]:
    """Return the bundled checkpoints, each with one measured figure."""
    rows = []
    for name in checkpoints.bundled_names():
        card = checkpoints.read_card(name)
        weights = checkpoints.read_weights(name, card)
        figure, measured_on = headline(card)
        rows.append({
            "name": name,
            "task": card.task,
            "architecture": card.architecture,
            "parameters": count_parameters(checkpoints.build(card, weights)),
            "bytes": len(weights),
            "headline": figure,
            "measured_on": measured_on,
        })  # fmt: skip
    return rows


def describe(thing: type[Any]) -> str:
    """Return the first line of the docstring of the module that defines a class."""
    return (inspect.getdoc(inspect.getmodule(thing)) or "").partition("\n")[0]


def count_parameters(model: nn.Module) -> int:
    """Return the number of values that training adjusts."""
    return sum(parameter.numel() for parameter in model.parameters())


def headline(card: Card) -> tuple[str, str]:
    """Return one figure of a card and its test set; a figure of `evaluate` is preferred to one from training."""
    for entry in card.metrics:
        if "headline" in entry:
            return entry["headline"], f"{entry['set']}, {number(entry['images'], 'image')}"
    for entry in card.metrics:
        if "psnr_db" in entry:
            return f"{entry['psnr_db']:.2f} dB", str(entry.get("set", ""))
    return "", ""


def show_checkpoint(name_or_url: str, storage: StorageConfig, as_json: bool = False) -> None:
    """Print the card, the layers and all measured figures of a checkpoint, as text or as one JSON object.

    The JSON keys are those of card.json, and `bytes`, `parameter_count`, `multiply_adds`, `input` (C, H, W of the example
    that `multiply_adds` and `layers` refer to) and `layers` (`name`, `type`, `output`, `parameters`).

    Raises:
        CheckpointError: when the checkpoint cannot be read.
    """
    card, weights = checkpoints.read(name_or_url, storage.options_for(name_or_url))
    model = checkpoints.build(card, weights)
    layers, multiply_adds = measure_layers(model)
    size = "×".join(map(str, model.example))
    if as_json:
        counts = {"bytes": len(weights), "parameter_count": count_parameters(model), "multiply_adds": multiply_adds}
        content = {**card.model_dump(), **counts, "input": list(model.example), "layers": layers}
        print_json(checkpoints.replace_non_finite(content))
        return
    facts = [
        ("name", card.name),
        ("task", card.task),
        ("architecture", f"{card.architecture} {describe_values(card.parameters)}".strip()),
        ("weights", f"{len(weights):,} bytes"),
        ("sha256", card.sha256),
        ("preprocessing", describe_values(card.preprocessing)),
        ("trained on", card.data or "unknown"),
        ("training", describe_values(card.training)),
        *((("imported from", describe_values(card.origin.model_dump())),) if card.origin else ()),
        *(contract_facts(card.contract) if card.contract else ()),
        ("parameters", f"{count_parameters(model):,}"),
        ("compute", f"{multiply_adds:,} multiply-adds for an input of {size}"),
    ]
    print_facts([(name, value) for name, value in facts if value])
    print_text(f"\nlayers, for an input of {size}\n")
    print_table(list(layers[0]), [list(map(layer_cell, layer.values())) for layer in layers])
    for entry in card.metrics:
        figures = {key: value for key, value in entry.items() if key not in SHOWN_APART}
        facts = [entry.get("headline", ""), describe_values(figures)]
        print_text(f"\n{entry.get('set', 'unnamed set')}: {'; '.join(filter(None, facts))}")
        lines = entry.get("table") or []
        # A card keeps the lines of all tables of an evaluation in one list.
        for columns in dict.fromkeys(tuple(line) for line in lines):
            rows = [[format_figure(line[column]) for column in columns] for line in lines if tuple(line) == columns]
            print_text("")
            print_table(columns, rows)


def layer_cell(value: Any) -> str:
    """Format a value of a layer: a size as 3×256×256, a missing one as an empty cell."""
    return "×".join(map(str, value)) if isinstance(value, list) else format_figure(value or None)


def describe_values(values: dict[str, Any]) -> str:
    """Return keys and values in one line."""
    return ", ".join(f"{k} {v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items())


def measure_layers(model: Network) -> tuple[list[Row], int]:
    """Run a model on one example input.

    Returns:
        The layers (modules with own parameters or without submodules) in the order of their definition, and the number of
        multiply-adds that the model needs for the input.
    """
    outputs: dict[str, list[int]] = {}

    def record_size(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Sequence[Any], output: Any) -> None:
            if isinstance(output, torch.Tensor):
                outputs[name] = list(output.shape[1:])

        return hook

    layers = [
        (name, module)
        for name, module in model.named_modules()
        if not list(module.children()) or list(module.parameters(recurse=False))
    ]
    handles = [module.register_forward_hook(record_size(name)) for name, module in layers]
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, *model.example))
    finally:
        for handle in handles:
            handle.remove()
    rows = [
        {
            "name": name or "(model)",
            "type": type(module).__name__,
            "output": outputs.get(name, []),
            "parameters": sum(parameter.numel() for parameter in module.parameters(recurse=False)),
        }
        for name, module in layers
    ]
    return rows, counter.get_total_flops() // 2
