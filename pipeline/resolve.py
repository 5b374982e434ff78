"""A config and what it names: task, checkpoint, both ends, and the plan of what is to do between them."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from imagemill.models import checkpoint as checkpoints
from imagemill.models.card import Card
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Params, Task
from imagemill.pipeline.config import RunConfig, validate
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.images.encode import LOSSY_FORMATS
from imagemill.pipeline.output.origins import is_same_place
from imagemill.pipeline.output.ownership import check_output
from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.output.run_history import list_run_ids, read_last_records, read_run_records
from imagemill.pipeline.output.style_images import read_style_images
from imagemill.pipeline.plan import Plan, make_plan
from imagemill.pipeline.sources.input import Input, list_images, open_input
from imagemill.pipeline.sources.web import redact_secrets
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

log = logging.getLogger("imagemill.run")


@dataclass(frozen=True)
class ResolvedRun:
    """A config whose names have become things: all that can be wrong with them was looked at, but for the model itself."""

    config: RunConfig
    task: Task
    params: Params
    card: Card
    weights: bytes
    style_images: list[tuple[str, bytes]]
    """sha256 and content of the files that the parameters name."""
    source: Input
    output: Store

    @property
    def parameters(self) -> dict[str, Any]:
        """What changes pixels or codes, beside the checkpoint."""
        values = {**self.params.model_dump(), "task": self.task.name, "reconstruct": self.config.reconstruct}
        # Only what was asked for: outputs that were there before there was a choice keep their versions.
        if asked := self.config.image.model_dump(exclude_defaults=True):
            values["image"] = asked
        # What is in a file counts, not where it lies.
        return values | ({key: [sha256 for sha256, _ in self.style_images]} if (key := self.task.style_param) else {})


def resolve(config: RunConfig) -> ResolvedRun:
    """Look at all that a config names; `check_model` and `check_ends` do the rest.

    Raises: ConfigError, CheckpointError, StorageError; each names what is wrong and what would be right.
    """
    task, params = task_of(config)
    name = config.checkpoint or task.default_checkpoint
    card, weights = checkpoints.read(name, config.storage.options_for(name))
    if card.task != task.name:
        raise ConfigError(f"checkpoint {name} is for the task {card.task}, not {task.name}")
    if name == "random":
        log.warning("checkpoint random: its features were never trained; pictures are poor, a trained network's are better")
    output = Store(str(config.output), config.storage)
    try:
        source = open_input(str(config.input), config.storage, config.source)
    except STORE_FAILURES as e:
        raise StorageError(f"input {config.input}: {reason(e)}") from None
    for inner, outer in ((source.store, output), (output, source.store)):
        if not source.file and inner.lies_in(outer):
            raise ConfigError(f"input {source.url} and output {output.url} lie one in the other")
    return ResolvedRun(config, task, params, card, weights, read_style_images(config, task, params), source, output)


def task_of(config: RunConfig) -> tuple[Task, Params]:
    """The task of a config and its parameters, as far as they can be told without looking at any place.

    Raises: ConfigError.
    """
    if config.task not in TASKS:
        raise ConfigError(f"task = {config.task!r}; valid: {', '.join(TASKS)}")
    task = TASKS[config.task]
    for key in ("input", "output"):
        if not getattr(config, key):
            raise ConfigError(f"{key} is missing: a folder or s3://bucket/prefix")
    params = validate(task.Params, config.params, task.name, ("params",))
    check_image(config, task)
    return task, params


def check_model(job: ResolvedRun) -> None:
    """Build the model once, which imports torch and takes seconds.

    Raises: CheckpointError when its weights do not fit, or it cannot do what the parameters ask.
    """
    from imagemill.models.objectives import TASK_OBJECTIVES

    TASK_OBJECTIVES[job.task.name].check(checkpoints.build(job.card, job.weights), job.params)


def check_image(config: RunConfig, task: Task) -> None:
    """Raises: ConfigError when the outputs of a task cannot be as the group `image` asks."""
    asked = config.image.format
    if task.needs_lossless and asked and asked.upper() in LOSSY_FORMATS:
        raise ConfigError(f"image.format = {asked!r}: {task.name} keeps pixels to the last bit; valid: png, tiff")
    beside = config.image.model_dump(exclude_defaults=True).keys() - {"alpha"}
    if task.stores_latent and beside:
        raise ConfigError(
            f"image.{', image.'.join(sorted(beside))}: {task.name} writes latents, which hold sRGB and nothing beside it, "
            "and decodes them to PNG; image.alpha is what can be chosen"
        )


@contextmanager
def storage_errors(job: ResolvedRun) -> Iterator[None]:
    """What a store's client raises becomes a StorageError that names both ends."""
    try:
        yield
    except STORE_FAILURES as e:
        raise StorageError(f"{job.source.url} or {job.output.url}: {reason(e)}") from None


def check_ends(job: ResolvedRun) -> None:
    """Raises: ConfigError when OUTPUT belongs to another task, or to somebody else."""
    with storage_errors(job):
        check_output(job.output)
        for path in list_parts(job.output, "results")[:1]:
            there = read_parts(job.output, [path], ["task"])["task"][0].as_py()
            if there != job.task.name:
                raise ConfigError(f"output {job.output.url} belongs to the task {there}, not {job.task.name}")


def plan_of(job: ResolvedRun, store_indexes: bool = False) -> Plan:
    """What a run would do; changes nothing unless it is to keep what shards were found to hold.

    Raises: StorageError; ConfigError for a manifest that is none, or a column that it lacks.
    """
    config = job.config
    with storage_errors(job):
        listed = list_images(job.source, job.output, masks=job.task.needs_mask(job.params), store_indexes=store_indexes)
        plan = make_plan(
            listed,
            job.source.store,
            job.output,
            job.card.sha256,
            job.parameters,
            retry_failed=config.retry_failed,
            accept_damaged=config.accept_damaged,
            limit=config.limit,
        )
        plan.input_warning, plan.new_input = find_input_warning(job, plan), find_new_input(job, plan)
        if plan.input_warning:
            log.warning("%s", plan.input_warning)
    return plan


def find_input_warning(job: ResolvedRun, plan: Plan) -> str | None:
    """Why INPUT, or OUTPUT, may be the wrong place: it has no image, or none of those that OUTPUT knows.

    Images of a place that was an INPUT before come and go, but not all of them.
    """
    if not plan.strange:
        others = f" (other files: {plan.ignored.total():,})" if plan.ignored else ""
        return None if plan.found else f"{job.source.url} holds no image{others}: is it the right place?"
    # A run that ended before its plan took nothing from its input.
    before = [record["input"] for record in read_last_records(job.output) if "planned" in record]
    if plan.found and job.source.url in before:
        return None
    said = f"{job.source.url} holds none of the images that {job.output.url} has rows of"
    filled = f", which was filled from {before[-1]}" if before else ""
    return f"{said}{filled}: is it the right place, and all there?"


def find_new_input(job: ResolvedRun, plan: Plan) -> str | None:
    """Why a run must not do this plan: it would replace the outputs of images of the same names from another place.

    None where the config allows it, and where the last run that was allowed to was one over this INPUT.
    """
    if not plan.moved or job.config.allow_new_input:
        return None
    records = read_run_records(job.output, list_run_ids(job.output))
    allowed = max((record for record in records if "moved_from" in record), key=fencing_token_of, default=None)
    if allowed and is_same_place(allowed["input"], job.source.url):
        return None
    [(place, _)] = plan.moved.most_common(1)
    others = f" and {len(plan.moved) - 1:,} other places" if len(plan.moved) > 1 else ""
    known = (
        f"{plan.moved.total():,} of its {plan.found:,} images have rows that were made from {redact_secrets(place)}{others}"
    )
    return (
        f"input {job.source.url}: {known} (for example {redact_secrets(str(plan.moved_example))}), and a run "
        f"would replace their outputs in {job.output.url}. Give another OUTPUT. If INPUT was moved or renamed, pass "
        "--allow-new-input (allow_new_input: true)"
    )


def fencing_token_of(record: dict[str, Any]) -> int:
    return int(record["fence"])
