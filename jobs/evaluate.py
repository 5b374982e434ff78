"""How good a model is, measured through the product itself on a folder of clean images: table, JSON, picture, card."""

import json
import time
from typing import Any

from rich.table import Table

from imagemill.jobs.console import console, number
from imagemill.jobs.evaluations import EVALUATIONS
from imagemill.jobs.evaluations.digits import evaluate_digits
from imagemill.jobs.evaluations.evaluation import EvaluateConfig, Evaluation, Line, Measured
from imagemill.models import checkpoint as checkpoints
from imagemill.models.card import CheckpointError
from imagemill.models.tasks import TASKS
from imagemill.pipeline.cluster.connection import connected
from imagemill.pipeline.config import validate
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.run import package_versions
from imagemill.pipeline.storage import Store

FILES = ("evaluation.json", "evaluation.png")


def show_evaluation(values: dict[str, Any], origin: str, update_card: bool, overwrite: bool = False) -> Evaluation:
    """Measure what the YAML says, print the tables, and leave what the config asks for.

    Args:
        update_card: write the figures into the cards of the checkpoints.
        overwrite: replace files of OUTPUT that imagemill did not write.
    """
    config = validate(EvaluateConfig, values, origin)
    # Before the work: a place that cannot be, or holds files of the user.
    written = FileRecord(Store(config.output, config.storage), overwrite) if config.output else None
    if written:
        written.check(FILES)
    evaluation = evaluate(config, update_card)
    for title, lines in evaluation.tables.items():
        table = Table(*columns_of(lines), title=title, title_justify="left")
        for line in lines:
            table.add_row(*(text(line.get(column)) for column in columns_of(lines)))
        console.print(table)
    for note in [f"{number(evaluation.images, 'image')}, {config.set_name}", *evaluation.notes]:
        console.print(note)
    record = record_of(config, evaluation)
    if written:
        text_of_it = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False).encode()
        with written:
            written.announce(FILES)
            for name, data in zip(FILES, (text_of_it, evaluation.picture), strict=True):
                written.write(name, data)
        console.print(f"{written.place.url}/{', '.join(FILES)}", soft_wrap=True)
    if update_card:
        for measured in evaluation.measured:
            options = config.storage.options_for(measured.checkpoint)
            checkpoints.write_metrics(measured.checkpoint, metrics_of(config, evaluation.images, measured), options)
            console.print(f"card of {measured.checkpoint}: {measured.headline}")
    return evaluation


def evaluate(config: EvaluateConfig, update_card: bool = False) -> Evaluation:
    """Measure.

    Args: update_card: whether the checkpoints must have cards of their own, as what is measured goes there.
    Raises: ConfigError, CheckpointError, StorageError, VerificationError.
    """
    if config.task not in EVALUATIONS:
        raise ConfigError(f"task = {config.task!r}; valid: {', '.join(EVALUATIONS)}")
    if not config.input:
        raise ConfigError("input is missing: a folder or s3://bucket/prefix of clean images")
    for key in ("fit", "against"):
        if getattr(config, key) and not (config.task == "compress" and config.fit):
            raise ConfigError(
                f"{key} is for coders of digits: task compress, with fit, the images that they were trained on"
            )
    for name in (config.weights, *config.against) if update_card else ():
        try:
            checkpoints.read_card(name, config.storage.options_for(name))
        except CheckpointError as e:
            raise ConfigError(f"--update-card: {e}") from None
    with connected(None):
        return (evaluate_digits if config.fit else EVALUATIONS[config.task])(config)


def columns_of(lines: list[Line]) -> list[str]:
    return list(dict.fromkeys(column for line in lines for column in line))


def text(value: Any) -> str:
    """A figure as a table shows it: four significant digits, two decimals at least."""
    if isinstance(value, float):
        return f"{value:g}" if value % 1 == 0 else f"{value:.2f}" if abs(value) >= 10 else f"{value:.4g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def record_of(config: EvaluateConfig, evaluation: Evaluation) -> dict[str, Any]:
    """The content of evaluation.json; figures that are not finite are None."""
    names = [measured.checkpoint for measured in evaluation.measured]
    cards = [checkpoints.read(name, config.storage.options_for(name))[0] for name in names]
    record: dict[str, Any] = {
        "task": config.task,
        "set": config.set_name,
        "images": evaluation.images,
        "config": config.model_dump(mode="json"),
        "checkpoints": [{"name": card.name, "sha256": card.sha256} for card in cards],
        "date": time.strftime("%Y-%m-%d"),
        "versions": package_versions(),
        "headlines": {measured.checkpoint: measured.headline for measured in evaluation.measured},
        "tables": evaluation.tables | evaluation.details,
        "notes": evaluation.notes,
    }
    without: dict[str, Any] = checkpoints.replace_non_finite(record)
    return without


def metrics_of(config: EvaluateConfig, images: int, measured: Measured) -> dict[str, Any]:
    """An entry of `metrics` of a card."""
    table = [{k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()} for line in measured.lines]
    entry = {"set": config.set_name, "images": images, "date": time.strftime("%Y-%m-%d"), "headline": measured.headline}
    params, key = dict(config.params), TASKS[config.task].style_param
    if key in params:
        # A card travels; where its maker's files lay does not.
        params[key] = [url.rpartition("/")[2] for url in params[key]]
    return entry | ({"params": params} if params else {}) | {"table": table}
