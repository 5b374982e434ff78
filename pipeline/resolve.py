"""Resolve and check the names in a config (task, checkpoint, input, output), and build the plan of a run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from imagemill.models import checkpoint as checkpoints
from imagemill.models.card import Card
from imagemill.models.code_check import check_code
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.card_checks import check_card, check_dtype
from imagemill.models.tasks.task import Params, Task
from imagemill.models.type_checks import require_value
from imagemill.pipeline.config import RunConfig, validate
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.images.config import LOSSY_FORMATS
from imagemill.pipeline.output.origins import is_same_place
from imagemill.pipeline.output.output_names import is_storable
from imagemill.pipeline.output.ownership import check_output
from imagemill.pipeline.output.parts import list_parts, read_parts
from imagemill.pipeline.output.prefixes import read_location
from imagemill.pipeline.output.run_history import list_run_ids, read_last_records, read_run_records
from imagemill.pipeline.output.style_images import read_style_images
from imagemill.pipeline.plan import Plan, make_plan
from imagemill.pipeline.sources.addresses import redact_secrets
from imagemill.pipeline.sources.input import Input, list_images, open_input
from imagemill.pipeline.sources.system_files import EXCLUDED
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import reason, store_failures
from imagemill.pipeline.user_code import UserCode, permitted, read_user_code

log = logging.getLogger("imagemill.run")


@dataclass(frozen=True)
class ResolvedRun:
    """A config whose names are resolved and checked. Only the model is not checked yet (check_model)."""

    config: RunConfig
    task: Task
    params: Params
    card: Card
    weights: bytes
    code: UserCode | None
    """The code of a network that a user defines."""
    style_images: list[tuple[str, bytes]]
    """(sha256, content) of each file that the parameters name."""
    source: Input
    output: Store

    @property
    def parameters(self) -> dict[str, Any]:
        """All values, except the checkpoint, that change pixels or codes; they are part of the version of a row."""
        values = self.task.version_values(self.params, self.card)
        values |= {"task": self.task.name, "reconstruct": self.config.reconstruct}
        # Float latents are computed in float32 unless the config says otherwise. Symbols are always computed in float32.
        if self.card.contract and self.card.contract.latent and self.config.pool.dtype not in (None, self.task.dtype):
            values["dtype"] = self.config.pool.dtype
        # Defaults are left out, so that a new option does not change the version of existing rows.
        if image_options := self.config.image.model_dump(exclude_defaults=True):
            values["image"] = image_options
        # A style image counts by its content, not by its path.
        return values | ({key: [sha256 for sha256, _ in self.style_images]} if (key := self.task.style_param) else {})


def resolve(config: RunConfig) -> ResolvedRun:
    """Resolve and check the names in a config. `check_model` and `check_output_task` check the rest.

    Raises:
        ConfigError: when a key, or the combination of input and output, is invalid.
        CheckpointError: when the checkpoint cannot be read.
        StorageError: when the input does not exist or cannot be read.
    """
    task, params = resolve_task(config)
    name = require_value(config.checkpoint or task.default_checkpoint, "the checkpoint")
    card, weights = checkpoints.read(name, config.storage.options_for(name))
    check_card(name, card, task, params)
    check_dtype(name, card, config.pool.dtype)
    code = read_user_code(config.code)
    with permitted(code):
        check_code(card)
    if name == "random":
        log.warning("checkpoint random: its features are not trained, so the results are poor. Use a trained checkpoint")
    output = Store(str(config.output), config.storage)
    try:
        source = open_input(str(config.input), config.storage, config.source)
    except store_failures() as e:
        raise StorageError(f"input {config.input}: {reason(e)}") from None
    for inner, outer in ((source.store, output), (output, source.store)):
        if not source.file and inner.lies_in(outer):
            raise ConfigError(
                f"input {source.url} and output {output.url} overlap: one contains the other. Choose another output"
            )
    return ResolvedRun(config, task, params, card, weights, code, read_style_images(config, task, params), source, output)


def resolve_task(config: RunConfig) -> tuple[Task, Params]:
    """Return the task of a config and its parameters, without reading any store.

    Raises:
        ConfigError: when the task, a parameter, the prefix or an image option is invalid, or the input or output is missing.
    """
    if config.task not in TASKS:
        raise ConfigError(f"task={config.task!r}: unknown. Valid: {', '.join(TASKS)}")
    task = TASKS[config.task]
    for key in ("input", "output"):
        if not getattr(config, key):
            raise ConfigError(f"{key}: missing. Give a folder or s3://bucket/prefix")
    if config.prefix is not None and not is_storable(f"{config.prefix}/image"):
        raise ConfigError(
            f"prefix={config.prefix!r}: must be a name such as north, or several with / between them; not ., .., _renamed "
            "or a name that ends like an image file"
        )
    if not (config.checkpoint or task.default_checkpoint):
        raise ConfigError(
            f"checkpoint: missing. {task.name} has no bundled checkpoint. Give the folder of one, which `imagemill models "
            "import` writes"
        )
    params = validate(task.Params, config.params, task.name, ("params",))
    check_image(config, task)
    return task, params


def check_model(resolved: ResolvedRun) -> None:
    """Build the model once to check it. Importing torch takes seconds.

    Raises:
        CheckpointError: when the weights do not fit the architecture, or the model does not support the parameters.
    """
    from imagemill.models.objectives import TASK_OBJECTIVES

    TASK_OBJECTIVES[resolved.task.name].check(checkpoints.build(resolved.card, resolved.weights), resolved.params)


def check_image(config: RunConfig, task: Task) -> None:
    """Raise ConfigError if a task does not support an option of the group `image`."""
    image_format = config.image.format
    if task.needs_lossless and image_format and image_format.upper() in LOSSY_FORMATS:
        raise ConfigError(f"image.format={image_format!r}: {task.name} needs a lossless format. Valid: png, tiff")
    changed = config.image.model_dump(exclude_defaults=True).keys()
    if task.needs_lossless and (fitting := sorted(changed & {"resize", "crop"})):
        raise ConfigError(
            f"image.{', image.'.join(fitting)}: {task.name} keeps pixels of the source. Resize the images before the run"
        )
    unsupported = changed - {"alpha", "resize", "crop"}
    if task.stores_latent and unsupported:
        raise ConfigError(
            f"image.{', image.'.join(sorted(unsupported))}: {task.name} writes latents of sRGB images and decodes them to "
            "PNG. Only image.alpha, image.resize and image.crop can be set"
        )


@contextmanager
def storage_errors(resolved: ResolvedRun) -> Iterator[None]:
    """Turn what a store's client raises in a `with` block into a StorageError that names the input and output."""
    try:
        yield
    except store_failures() as e:
        raise StorageError(f"{resolved.source.url} or {resolved.output.url}: {reason(e)}") from None


def check_output_task(resolved: ResolvedRun) -> None:
    """Raise ConfigError if the output belongs to another task, or holds files that no run wrote."""
    with storage_errors(resolved):
        check_output(resolved.output)
        for path in list_parts(resolved.output, "results")[:1]:
            output_task = read_parts(resolved.output, [path], ["task"])["task"][0].as_py()
            if output_task != resolved.task.name:
                message = f"belongs to the task {output_task}, not {resolved.task.name}. Choose another output"
                raise ConfigError(f"output {resolved.output.url}: {message}")


def build_plan(resolved: ResolvedRun, store_indexes: bool = False) -> Plan:
    """List the input and return the plan of a run.

    Args:
        resolved: the resolved run.
        store_indexes: write the indexes of shards to the output; otherwise nothing is written.

    Raises:
        StorageError: when the output, the input or all images of the input cannot be read.
        ConfigError: when a manifest is malformed or lacks a column.
    """
    config = resolved.config
    with storage_errors(resolved):
        listed = list_images(
            resolved.source, resolved.output, masks=resolved.task.needs_mask(resolved.params), store_indexes=store_indexes
        )
        plan = make_plan(
            listed,
            resolved.source.store,
            resolved.output,
            resolved.card.sha256,
            resolved.parameters,
            retry_failed=config.retry_failed,
            accept_damaged=config.accept_damaged,
            limit=config.limit,
            limit_order=config.limit_order,
            selection=config.source.selection,
            prefix=config.prefix,
        )
        if plan.unreadable_folders:
            if len(plan.unreadable_folders) == plan.found:
                raise StorageError(describe_unreadable(plan, resolved.source))
            warning = "%s. Such a folder is one reject, and all other images are processed"
            log.warning(warning, describe_unreadable(plan, resolved.source))
        plan.input_warning, plan.new_input = find_input_warning(resolved, plan), find_new_input(resolved, plan)
        if plan.input_warning:
            log.warning("%s", plan.input_warning)
    return plan


def describe_unreadable(plan: Plan, source: Input) -> str:
    """Describe the folders of an input that cannot be listed."""
    folder, problem = next(iter(plan.unreadable_folders.items()))
    others = len(plan.unreadable_folders) - 1
    more = f" ({others:,} more {'folder' if others == 1 else 'folders'} cannot be listed)" if others else ""
    return f"input {source.store.uri(folder)}: {problem}{more}"


def find_input_warning(resolved: ResolvedRun, plan: Plan) -> str | None:
    """Return why the input or output may be the wrong place, or None.

    There are two reasons: the input holds no image, or it holds none of the images that the output has rows of. The second
    reason does not apply if an earlier run read the same input, because all of its images may have been replaced since.
    """
    if not plan.found and resolved.config.source.selection:
        excluded, others = plan.ignored[EXCLUDED], plan.ignored.total() - plan.ignored[EXCLUDED]
        return (
            f"{resolved.source.url}: source.include and source.exclude leave no image (excluded: {excluded:,}, other files: "
            f"{others:,}). Check the patterns: they match paths below the input"
        )
    if not plan.is_unrelated:
        other_files = f" (other files: {plan.ignored.total():,})" if plan.ignored else ""
        return None if plan.found else f"{resolved.source.url} holds no image{other_files}. Is it the right place?"
    # A run that ended before its plan processed nothing of its input.
    prefix = resolved.config.prefix
    records = [record for record in read_last_records(resolved.output) if "planned" in record]
    earlier_inputs = [record["input"] for record in records if record.get("prefix") == prefix]
    if plan.found and (resolved.source.url in earlier_inputs or (prefix and not earlier_inputs)):
        return None
    origin = f", which was made from {earlier_inputs[-1]}" if earlier_inputs else ""
    return (
        f"{resolved.source.url} holds none of the images that {resolved.output.url} has rows of{origin}. Is it the right "
        "place, and complete?"
    )


def find_new_input(resolved: ResolvedRun, plan: Plan) -> str | None:
    """Return why a run must refuse this plan, or None.

    A run must not replace the outputs of other images that happen to have the same names, and a prefix belongs to one
    location. The key allow_new_input permits a new location, and the permission holds for later runs on the same input.
    """
    if resolved.config.allow_new_input:
        return None
    prefix = resolved.config.prefix
    location = read_location(resolved.output, prefix) if prefix else None
    if location and not is_same_place(location, resolved.source.url):
        return (
            f"input {resolved.source.url}: in {resolved.output.url}, the prefix {prefix} belongs to {location}. Choose "
            "another prefix. If the input was moved or renamed, pass --allow-new-input (allow_new_input: true)"
        )
    if not plan.moved:
        return None
    records = read_run_records(resolved.output, list_run_ids(resolved.output))
    records = [record for record in records if "moved_from" in record and record.get("prefix") == prefix]
    allowed_run = max(records, key=fencing_token_of, default=None)
    if allowed_run and is_same_place(allowed_run["input"], resolved.source.url):
        return None
    [(place, _)] = plan.moved.most_common(1)
    other_places = f" and {len(plan.moved) - 1:,} other places" if len(plan.moved) > 1 else ""
    same_names = f"{plan.moved.total():,} of its {plan.found:,} images have rows that were made from "
    same_names += f"{redact_secrets(place)}{other_places}"
    return (
        f"input {resolved.source.url}: {same_names} (for example {redact_secrets(str(plan.moved_example))}), and a run "
        f"would replace their outputs in {resolved.output.url}. To keep both, choose another output, or name this input "
        "with --prefix. If the input was moved or renamed, pass --allow-new-input (allow_new_input: true)"
    )


def fencing_token_of(record: dict[str, Any]) -> int:
    """Return the fencing token of a run by its run.json, which calls it `fence`."""
    return int(record["fence"])
