"""Import a model of another library, or of a user, as a checkpoint folder: `imagemill models import`."""

import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from imagemill.jobs.console import print_facts, print_text
from imagemill.jobs.importing.contract_facts import contract_facts
from imagemill.jobs.importing.source import Source, read_source
from imagemill.models import checkpoint as checkpoints
from imagemill.models.card import Card, Origin
from imagemill.models.errors import CheckpointError
from imagemill.models.routes import diffusers_route, python_route, single_file, spandrel_route
from imagemill.models.routes.recognised import Recognised
from imagemill.models.routes.spandrel_route import OTHER_ARCHITECTURE
from imagemill.models.routes.trial import MIN_CORRELATION, POOR_PSNR, Trial, try_network
from imagemill.models.routes.weights import METADATA, pack_weights
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.card_checks import describe_network
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from imagemill.pipeline.store_failures import store_failures
from imagemill.pipeline.user_code import INSTALLED, permitted, read_user_code

log = logging.getLogger("imagemill.import")
DEFAULT_RANGE = (0.0, 1.0)
NO_FACTOR = (
    "note: the file does not say how trainers scale the latents. For `imagemill export --scaled`, import the file again "
    "with --argument scaling_factor=0.18215 (Stable Diffusion 1 and 2) or 0.13025 (SDXL)"
)
MAX_HEADER = 100_000_000
"""Maximum bytes of the header of a safetensors file."""


@dataclass(frozen=True)
class ImportRequest:
    """What `imagemill models import` is asked to do.

    Attributes:
        source: a folder of diffusers, or a file with weights.
        dest: the checkpoint folder to write.
        task: the task of the checkpoint; chosen by the network when absent.
        name: the name of the checkpoint; that of the folder when absent.
        architecture: MODULE:CLASS of a network that the user defines.
        arguments: arguments of the class, or the scaling factors of an autoencoder in a single file.
        input_range: black and white of such a network.
        code: folder that holds the module, or "installed".
        overwrite: replace a checkpoint that imagemill did not import.
    """

    source: str
    dest: str
    task: str | None = None
    name: str | None = None
    architecture: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    input_range: tuple[float, float] = DEFAULT_RANGE
    code: str | None = None
    overwrite: bool = False


def show_import(request: ImportRequest, storage: StorageConfig) -> None:
    """Import a model, try it on one image, write the checkpoint, and print what it is and which command runs it.

    Raises:
        ConfigError: when the source cannot be read, or an option does not fit it. Nothing is written.
        CheckpointError: when the network cannot be used. Nothing is written.
        StorageError: when the checkpoint cannot be written.
    """
    dest = Store(request.dest, storage)
    check_options(request)
    check_dest(dest, request.overwrite)
    code = read_user_code(request.code or INSTALLED) if request.architecture else None
    source = read_source(request.source, storage)
    log.info("measuring the network, which takes up to a minute for a large one")
    with permitted(code):
        found = recognise(request, source)
        card, weights = build_checkpoint(request, found, source)
        check_same_network(dest, card, request.overwrite)
        trial = try_checkpoint(card, weights, found)
    checkpoints.write(dest.url, card, weights, storage.options_for(dest.url))
    print_facts(describe(card, found, trial))
    if found.contract.latent and trial.psnr_db < POOR_PSNR:
        print_text(f"warning: a reconstruction with {trial.psnr_db:.1f} dB has nearly no details. Are the weights trained?")
    elif found.contract.mask and trial.psnr_db < POOR_PSNR:
        print_text(
            f"warning: a filled hole with {trial.psnr_db:.1f} dB does not resemble the image. Are the weights trained?"
        )
    elif not found.contract.mask and trial.correlation < MIN_CORRELATION:
        print_text("warning: the result does not resemble its input. Is --input-range right?")
    latent = found.contract.latent
    if latent and found.route == "diffusers" and source.config is None and latent.scaling_factor is None:
        print_text(NO_FACTOR)
    option = f" --code {request.code or INSTALLED}" if request.architecture else ""
    print_text(f"next: imagemill {card.task} PHOTOS OUTPUT --checkpoint {request.dest}{option}")


def check_options(request: ImportRequest) -> None:
    """Raise ConfigError for an unknown task, or for options that need --architecture."""
    tasks = sorted(TASKS)
    if request.task is not None and request.task not in tasks:
        raise ConfigError(f"--task {request.task}: unknown. Valid: {', '.join(tasks)}")
    given = {
        "--argument": set(request.arguments) - set(single_file.FACTORS),
        "--input-range": request.input_range != DEFAULT_RANGE,
        "--code": request.code,
    }
    if not request.architecture and any(given.values()):
        names = ", ".join(name for name, value in given.items() if value)
        raise ConfigError(f"{names}: only for networks of your own. Pass --architecture MODULE:CLASS as well")
    for name, value in request.arguments.items():
        if not request.architecture and not isinstance(value, int | float):
            raise ConfigError(f"--argument {name}={value!r}: must be a number")
    if request.input_range[0] >= request.input_range[1]:
        raise ConfigError(f"--input-range {request.input_range}: must be black,white, such as -1,1")


def check_dest(dest: Store, overwrite: bool) -> None:
    """Check that a checkpoint folder is free, or was written by an import.

    Raises:
        ConfigError: when the folder has files of a checkpoint that was not imported.
    """
    if dest.local and Path(dest.full("")).is_file():
        raise ConfigError(f"dest {dest.url}: is a file. Give a folder for the checkpoint")
    if overwrite or not any(dest.exists(name) for name in (checkpoints.WEIGHTS, checkpoints.CARD)):
        return
    try:
        is_own = checkpoints.read_card(dest.url, dest.config.options_for(dest.url)).origin is not None
    except CheckpointError:
        # An import that was killed between its two files has left weights with its metadata.
        is_own = not dest.exists(checkpoints.CARD) and METADATA in read_metadata(dest)
    if not is_own:
        raise ConfigError(
            f"dest {dest.url}: contains a checkpoint that `imagemill models import` did not write. Choose another folder, "
            "or pass --overwrite"
        )


def check_same_network(dest: Store, card: Card, overwrite: bool) -> None:
    """Check that an import replaces only a checkpoint of the same network, for example with newer weights.

    Raises:
        ConfigError: when the folder has a checkpoint of another network.
    """
    if overwrite or not dest.exists(checkpoints.CARD):
        return
    old = checkpoints.read_card(dest.url, dest.config.options_for(dest.url))
    if (old.route, old.architecture) != (card.route, card.architecture):
        raise ConfigError(
            f"dest {dest.url}: contains another network, {old.architecture}. Choose another folder, or pass --overwrite"
        )


def read_metadata(dest: Store) -> dict[str, str]:
    """Return the metadata in the header of weights.safetensors; an empty dictionary if the file is damaged."""
    try:
        length = int.from_bytes(dest.read_range(checkpoints.WEIGHTS, 0, 8), "little")
        header = json.loads(dest.read_range(checkpoints.WEIGHTS, 8, min(length, MAX_HEADER)))
    except store_failures(ValueError):
        return {}
    metadata = header.get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def recognise(request: ImportRequest, source: Source) -> Recognised:
    """Find out which network the source holds, and measure it.

    Raises:
        ConfigError: when the network cannot be used for the task.
        CheckpointError: when the network is unknown or unusable.
    """
    is_single_file = not request.architecture and source.config is None
    prefix = single_file.find_prefix(source.tensors) if is_single_file else None
    if request.arguments and not request.architecture and prefix is None:
        raise ConfigError(
            "--argument: only for networks of your own, and for a Stable Diffusion autoencoder in a single file"
        )
    try:
        if request.architecture:
            if source.config is not None:
                raise ConfigError(f"source {request.source}: --architecture needs a file with weights, not a folder")
            found = python_route.recognise(
                request.architecture, request.arguments, source.tensors, request.input_range, request.task
            )
        elif source.config is not None:
            found = diffusers_route.recognise(source.config, source.tensors)
        elif prefix is not None:
            config, tensors = single_file.convert(source.tensors, prefix)
            found = diffusers_route.recognise(config | request.arguments, tensors)
        else:
            found = spandrel_route.recognise(source.tensors)
    except CheckpointError as e:
        raise CheckpointError(f"source {request.source}: {e}") from None
    if request.task and request.task not in found.tasks:
        raise ConfigError(
            f"--task {request.task}: {found.architecture} {describe_network(found.contract)}, so it cannot do this task. "
            f"Valid: {', '.join(found.tasks)}"
        )
    return found


def build_checkpoint(request: ImportRequest, found: Recognised, source: Source) -> tuple[Card, bytes]:
    """Return the card and the content of weights.safetensors."""
    weights = pack_weights(
        found.tensors, found.route, found.architecture, found.parameters, found.contract, found.code_sha256
    )
    card = Card(
        name=request.name or request.dest.rstrip("/").rpartition("/")[2],
        task=request.task or found.tasks[0],
        route=found.route,
        architecture=found.architecture,
        parameters=found.parameters,
        contract=found.contract,
        code_sha256=found.code_sha256,
        origin=Origin(library=found.library, files=source.files, dtypes=dtypes_of(found.tensors)),
        sha256=hashlib.sha256(weights).hexdigest(),
    )
    return card, weights


def dtypes_of(tensors: dict[str, Tensor]) -> list[str]:
    """Return the number formats of weights, the most frequent first."""
    counts = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    return [name for name, _ in counts.most_common()]


def try_checkpoint(card: Card, weights: bytes, found: Recognised) -> Trial:
    """Build the network of a checkpoint as runs do, and process one image.

    Raises:
        CheckpointError: when the network fails, or its result shows that the network was taken for another one.
    """
    trial = try_network(checkpoints.build(card, weights), found.contract)
    if found.must_resemble_input and trial.correlation < MIN_CORRELATION:
        raise CheckpointError(
            f"{found.library} takes the weights for {found.architecture}, but the result for an image does not resemble the "
            f"image ({trial.describe()}). {OTHER_ARCHITECTURE}"
        )
    return trial


def describe(card: Card, found: Recognised, trial: Trial) -> list[tuple[str, str]]:
    """Return what was recognised, as lines of a name and a value."""
    contract = found.contract
    parameters = sum(tensor.numel() for tensor in found.tensors.values())
    facts = [
        ("recognised", f"{found.architecture} ({found.library})"),
        ("name", card.name),
        ("task", f"{card.task} (possible: {', '.join(found.tasks)})" if len(found.tasks) > 1 else card.task),
        ("weights", f"{parameters:,} values, {', '.join(dtypes_of(found.tensors))}"),
        *contract_facts(contract),
        ("one hole" if contract.mask else "one image", trial.describe()),
        ("sha256", card.sha256),
    ]
    return facts
