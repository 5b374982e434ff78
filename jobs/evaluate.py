"""Evaluate a checkpoint end to end on clean images, and compare it with simple baselines: tables, JSON, picture, card."""

import json
import time
from typing import Any

from imagemill.jobs.console import format_figure, number, print_table, print_text
from imagemill.jobs.evaluations import EVALUATIONS
from imagemill.jobs.evaluations.digits import evaluate_digits
from imagemill.jobs.evaluations.evaluation import EvaluateConfig, Evaluation, Measured, TableRow
from imagemill.models import checkpoint as checkpoints
from imagemill.models.errors import CheckpointError
from imagemill.models.tasks import TASKS
from imagemill.pipeline.cluster.connection import share_ray
from imagemill.pipeline.config import validate
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.output.file_record import FileRecord
from imagemill.pipeline.run import package_versions
from imagemill.pipeline.storage import Store
from imagemill.pipeline.user_code import permitted, read_user_code

FILES = ("evaluation.json", "evaluation.png")


def show_evaluation(values: dict[str, Any], origin: str, update_card: bool, overwrite: bool = False) -> Evaluation:
    """Evaluate a checkpoint, print the tables, and write evaluation.json and evaluation.png if there is an output.

    Args:
        values: the config.
        origin: where the config comes from, for error messages.
        update_card: write the figures into the cards of the checkpoints.
        overwrite: replace files of OUTPUT that imagemill did not write.
    """
    config = validate(EvaluateConfig, values, origin)
    # Checked before the work: whether OUTPUT can be written, and contains files of the user.
    written = FileRecord(Store(config.output, config.storage), overwrite) if config.output else None
    if written:
        written.check(FILES)
    evaluation = evaluate(config, update_card)
    for title, rows in evaluation.tables.items():
        print_text(f"{title}:")
        columns = table_columns(rows)
        print_table(columns, [[format_figure(row.get(column)) for column in columns] for row in rows])
        print_text("")
    for note in [f"{number(evaluation.images, 'image')}, {config.set_name}", *evaluation.notes]:
        print_text(note)
    record = build_record(config, evaluation)
    if written:
        content = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False).encode()
        with written:
            written.announce(FILES)
            for name, data in zip(FILES, (content, evaluation.picture), strict=True):
                written.write(name, data)
        for name in FILES:
            print_text(written.place.uri(name))
    if update_card:
        for measured in evaluation.measured:
            options = config.storage.options_for(measured.checkpoint)
            checkpoints.write_metrics(measured.checkpoint, build_card_entry(config, evaluation.images, measured), options)
            print_text(f"card of {measured.checkpoint}: {measured.headline}")
    return evaluation


def evaluate(config: EvaluateConfig, update_card: bool = False) -> Evaluation:
    """Evaluate the checkpoints of a config.

    Args:
        config: the evaluation.
        update_card: whether the figures are written into cards, so that each checkpoint must have one.

    Raises:
        ConfigError: when the config is invalid or an image cannot be used.
        CheckpointError: when a checkpoint cannot be read or used.
        StorageError: when the input cannot be read.
        VerificationError: when an output breaks a guarantee of its task.
    """
    if config.task not in EVALUATIONS:
        raise ConfigError(f"task = {config.task!r}: unknown; valid: {', '.join(EVALUATIONS)}")
    if not config.input:
        raise ConfigError("input: missing. Give a folder or s3://bucket/prefix of clean images")
    for key in ("fit", "against"):
        if getattr(config, key) and not (config.task == "compress" and config.fit):
            raise ConfigError(
                f"{key}: only for networks that compress digits. Set task to compress and fit to their training images"
            )
    for name in (config.weights, *config.against) if update_card else ():
        try:
            checkpoints.read_card(name, config.storage.options_for(name))
        except CheckpointError as e:
            raise ConfigError(f"--update-card: {e}") from None
    with permitted(read_user_code(config.code)), share_ray():
        return (evaluate_digits if config.fit else EVALUATIONS[config.task])(config)


def table_columns(rows: list[TableRow]) -> list[str]:
    """Return the columns of all rows, in the order of their first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))


def build_record(config: EvaluateConfig, evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of evaluation.json; figures that are not finite are None."""
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
    finite: dict[str, Any] = checkpoints.replace_non_finite(record)
    return finite


def build_card_entry(config: EvaluateConfig, images: int, measured: Measured) -> dict[str, Any]:
    """Return the entry of a card's `metrics` for a measured checkpoint."""
    table = [{k: round(v, 5) if isinstance(v, float) else v for k, v in line.items()} for line in measured.lines]
    entry = {"set": config.set_name, "images": images, "date": time.strftime("%Y-%m-%d"), "headline": measured.headline}
    params, key = dict(config.params), TASKS[config.task].style_param
    if key in params:
        # Cards are published, so they contain the names of style images without their folders.
        params[key] = [url.rpartition("/")[2] for url in params[key]]
    return entry | ({"params": params} if params else {}) | {"table": table}
