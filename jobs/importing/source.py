"""Read the model that `imagemill models import` imports: a folder of diffusers, or one file with weights."""

import hashlib
import io
import json
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from imagemill.jobs.importing.torch_script import is_program, read_program
from imagemill.models.checkpoint import CARD, PICKLES
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from imagemill.pipeline.store_failures import reason, store_failures

CONFIG = "config.json"
PIPELINE = "model_index.json"
DIFFUSERS_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors")
INDEX = ".index.json"
"""Ending of the file that lists the parts of large weights."""
WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
"""Keys under which training programs store the weights; averaged ones first."""
PREFIXES = ("module.", "netG.", "_orig_mod.")
"""What wrappers of networks, such as DataParallel and torch.compile, put before all names of weights."""
SAVE_AS_SAFETENSORS = (
    "Loading it would run code of the file, so it is refused. If you trust the file, save its weights in Python: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=False)[KEY], 'weights.safetensors'), where KEY is "
    "that of the state dict, and the code of the objects is on PYTHONPATH"
)
"""What to do with a file that needs an unrestricted unpickle."""


@dataclass(frozen=True)
class Source:
    """A model as its files hold it.

    Attributes:
        tensors: the weights, in their own number formats.
        config: the content of config.json, for a folder of diffusers; None for a file with weights.
        files: SHA-256 of each file, by name.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any] | None
    files: dict[str, str]


def read_source(url: str, storage: StorageConfig) -> Source:
    """Read a folder of diffusers, or a file with weights.

    Raises:
        ConfigError: when there is no such file or folder, or it holds no weights that can be read safely.
    """
    place = Store(url, storage)
    try:
        if place.local and not Path(place.full("")).exists():
            advice = "Give a folder of diffusers, or a file with weights"
            if is_hub_name(url):
                advice += f". To get a model of the Hugging Face Hub, run: hf download {url} --local-dir FOLDER"
            raise ConfigError(f"source {url}: not found. {advice}")
        is_file = Path(place.full("")).is_file() if place.local else Path(url).suffix in (".safetensors", *PICKLES)
        if not is_file:
            return read_folder(place)
        parent, _, name = url.rstrip("/").rpartition("/")
        files = FileReader(Store(parent or ("/" if url.startswith("/") else "."), storage))
        if name.startswith("diffusion_pytorch_model") and files.place.exists(CONFIG):
            raise ConfigError(f"source {url}: belongs to a folder of diffusers. Give the folder: {files.place.url}")
        return Source(files.read_tensors(name), None, files.digests)
    except store_failures() as e:
        raise ConfigError(f"source {url}: cannot be read: {reason(e)}") from None


def is_hub_name(url: str) -> bool:
    """Return whether a missing source may be the name of a model of the Hugging Face Hub, such as owner/model."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", url) is not None and Path(url).suffix not in (".safetensors", *PICKLES)


def read_folder(place: Store) -> Source:
    """Read a folder of diffusers: an autoencoder, or a pipeline that contains one.

    Raises:
        ConfigError: when the folder holds no autoencoder.
    """
    folder = ""
    if not place.exists(CONFIG) and place.exists(f"vae/{CONFIG}"):
        folder = "vae/"
    if not place.exists(folder + CONFIG):
        if place.exists(PIPELINE):
            raise ConfigError(f"source {place.url}: is a pipeline without an autoencoder (vae/{CONFIG} is missing)")
        if place.exists(CARD):
            raise ConfigError(f"source {place.url}: is a checkpoint already. Use it with --checkpoint {place.url}")
        raise ConfigError(
            f"source {place.url}: {CONFIG} is missing. Give a folder of diffusers with {CONFIG} and {DIFFUSERS_WEIGHTS[0]}, "
            "or a single file with weights"
        )
    files = FileReader(place)
    config = files.read_json(folder + CONFIG)
    if "_class_name" not in config:
        raise ConfigError(f"source {place.uri(folder + CONFIG)}: has no _class_name, so it is not a model of diffusers")
    return Source(files.read_tensors(*list_weights(files, folder)), config, files.digests)


def list_weights(files: "FileReader", folder: str) -> list[str]:
    """Return the names of the files with the weights of a diffusers folder.

    Raises:
        ConfigError: when there are none.
    """
    for name in DIFFUSERS_WEIGHTS:
        if files.place.exists(folder + name):
            return [folder + name]
        if files.place.exists(folder + name + INDEX):
            return sorted({folder + part for part in files.read_json(folder + name + INDEX)["weight_map"].values()})
    raise ConfigError(
        f"source {files.place.uri(folder)}: {DIFFUSERS_WEIGHTS[0]} is missing. Save the model with "
        "save_pretrained(FOLDER, safe_serialization=True)"
    )


class FileReader:
    """Reads files of a folder, and keeps their digests.

    Args:
        place: the folder.
    """

    def __init__(self, place: Store) -> None:
        self.place = place
        self.digests: dict[str, str] = {}

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            ConfigError: when the file is missing.
        """
        try:
            data = self.place.read(name)
        except FileNotFoundError:
            raise ConfigError(f"source {self.place.uri(name)}: is missing") from None
        self.digests[name] = hashlib.sha256(data).hexdigest()
        return data

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file.

        Raises:
            ConfigError: when the file is missing, or is no JSON object.
        """
        try:
            content = json.loads(self.read(name))
        except ValueError as e:
            raise ConfigError(f"source {self.place.uri(name)}: is not JSON: {e}") from None
        if not isinstance(content, dict):
            raise ConfigError(f"source {self.place.uri(name)}: must be a JSON object")
        return content

    def read_tensors(self, *names: str) -> dict[str, Tensor]:
        """Return the weights in files.

        Raises:
            ConfigError: when a file is missing, or holds no weights that can be read safely.
        """
        tensors: dict[str, Tensor] = {}
        for name in names:
            uri = self.place.uri(name)
            if name.lower().endswith(".safetensors"):
                try:
                    content = self.read_safetensors(name)
                except safetensors.SafetensorError as e:
                    raise ConfigError(f"source {uri}: is not a safetensors file: {e}") from None
            elif name.lower().endswith(PICKLES):
                content = unwrap(load_pickle(self.read(name), uri), uri)
            else:
                raise ConfigError(f"source {uri}: unknown kind of file. Valid: .safetensors, {', '.join(PICKLES)}")
            tensors |= content
        return without_prefix(tensors)

    def read_safetensors(self, name: str) -> dict[str, Tensor]:
        """Return the weights in a safetensors file. Those of a local file stay on the disk until they are used."""
        if not self.place.local:
            return safetensors.torch.load(self.read(name))
        try:
            with Path(self.place.full(name)).open("rb") as file:
                self.digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            raise ConfigError(f"source {self.place.uri(name)}: is missing") from None
        return safetensors.torch.load_file(self.place.full(name))


def load_pickle(data: bytes, uri: str) -> Any:
    """Return the content of a file that torch.save or torch.jit.save wrote, without running code from it.

    Raises:
        ConfigError: when the file holds anything but tensors and plain values, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            # torch warns of files that it then refuses, or that hold other pickles than its own.
            warnings.simplefilter("ignore")
            if is_program(data):
                return read_program(data)
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        names = re.findall(r"GLOBAL (\S+)|[Uu]nsupported (?:global|class) (\S+)", str(e))
        objects = ", ".join(sorted({first or second for first, second in names})) or "objects"
        raise ConfigError(f"source {uri}: holds Python objects ({objects}) as a pickle. {SAVE_AS_SAFETENSORS}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as e:
        raise ConfigError(f"source {uri}: torch cannot read the file: {' '.join(str(e).split())[:200]}") from None


def unwrap(content: Any, uri: str) -> dict[str, Tensor]:
    """Return the state dict in the content of a pickle, also from the places where training programs put it.

    Raises:
        ConfigError: when there is none.
    """
    inner = content
    while isinstance(inner, dict):
        nested = [key for key in WRAPPERS if isinstance(inner.get(key), dict)]
        if not nested and len(inner) == 1 and isinstance(next(iter(inner.values())), dict):
            nested = list(inner)
        if not nested:
            break
        inner = inner[nested[0]]
    tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)} if isinstance(inner, dict) else {}
    if not tensors:
        held = f"the keys {', '.join(map(str, list(content)[:10]))}" if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"source {uri}: holds no state dict, but {held}. Save one state dict alone in a file")
    return tensors


def without_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefixes that wrappers of networks put before all names."""
    for prefix in PREFIXES:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors
