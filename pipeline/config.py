"""The config of a run: one YAML, validated by pydantic. Flags override it, and unknown keys are errors."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.images.config import MAX_PIXELS, ImageConfig
from imagemill.pipeline.sources.source import SourceConfig
from imagemill.pipeline.storage_config import StorageConfig

Model = TypeVar("Model", bound=BaseModel)
UNQUOTED = (bool, int, float)
"""Types that YAML gives to text without quotes, such as no, on or 007."""


class Strict(BaseModel):
    """A group of config keys that rejects unknown keys and accepts the names that its keys had before."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    OLD_KEYS: ClassVar[dict[str, str]] = {}
    """Former name of a key → its name now: the YAMLs of users and the configs of older runs still use the former name."""

    @model_validator(mode="before")
    @classmethod
    def rename_old_keys(cls, values: Any) -> Any:
        """Give keys their present names. If a key has both names, the later one wins: flags override the YAML."""
        return {cls.OLD_KEYS.get(key, key): value for key, value in values.items()} if isinstance(values, dict) else values


class PoolConfig(Strict):
    """The workers that run the model. Absent values are chosen to suit the machine."""

    OLD_KEYS: ClassVar[dict[str, str]] = {"actors": "workers"}

    workers: int | None = Field(
        None,
        ge=1,
        description="Start this many workers. Default: one for each GPU (or share of a GPU), without GPUs one for each CPU.",
    )
    batch_size: int | None = Field(
        None, ge=1, description="Process this many images in one batch. Default: 8 on a CPU, 32 on a GPU."
    )
    dtype: str | None = Field(
        None,
        pattern="^(float32|bfloat16|float16)$",
        description="Compute in float32, bfloat16 or float16. Default: bfloat16 if the hardware supports it, else float16 "
        "on GPUs with tensor cores, else float32. compress computes in float32 by default, and integer latents always.",
    )
    threads: int | None = Field(None, ge=1, description="Decode and encode with this many threads in each worker.")
    fetch_threads: int | None = Field(
        None,
        ge=1,
        le=256,
        description="Fetch images with this many threads in each worker. Default: 32 for a manifest with URLs, 16 for a "
        "bucket and other manifests, pool.threads for local files.",
    )
    fetch_per_host: int = Field(
        32,
        ge=1,
        description="Manifest: send at most this many requests at once to one web server. The workers of a run share them, "
        "but each worker sends at least one.",
    )
    gpu: bool | None = Field(None, description="Give each worker a GPU. Default: true if a node has a GPU.")
    gpus_per_worker: float = Field(
        1,
        ge=0.01,
        le=1,
        description="Give each worker this share of a GPU if workers take GPUs. 0.5 puts two workers on a GPU.",
    )
    wait_s: float = Field(
        0,
        ge=0,
        description="Wait this many seconds for nodes of an autoscaler. 0: all workers must find room at the start.",
    )


MEASURED_SHARE = 0.004
"""Default share of the images of a large run whose quality is measured.

To measure an image, the decoder runs, which takes about ten times as long as all other work on the image. This share
therefore takes less than 5 % of the time of a run.
"""
MIN_MEASURED, MAX_MEASURED = 16, 200
"""Smallest and largest default number of measured images; a smaller run measures all of its images."""


class RunConfig(Strict):
    """The config of `imagemill run`."""

    OLD_KEYS: ClassVar[dict[str, str]] = {"retry": "retry_failed"}

    task: str = Field(description="Run this task: compress, denoise, inpaint, colorize, upscale, restore or stylize.")
    input: str | None = Field(
        None,
        description="Read images from this folder or s3://bucket/prefix, shard or manifest. Required, here or as a flag.",
    )
    output: str | None = Field(None, description="Write to this folder or s3://bucket/prefix. Required, here or as a flag.")
    checkpoint: str | None = Field(
        None, description="Use this checkpoint: a bundled name, a folder or a URL. Default: that of the task."
    )
    code: str | None = Field(
        None,
        description="Allow a checkpoint of your own network to run Python code from this folder, which is shipped to the "
        "workers, or code that is installed.",
    )
    params: dict[str, Any] = Field(default_factory=dict, description="Set parameters of the task.")
    reconstruct: bool = Field(False, description="Also write the decoded images, as PNG.")
    quality: int | None = Field(
        None,
        ge=0,
        description="compress: measure psnr_db and bits_per_pixel of about this many images, chosen by a hash of their "
        f"names. Default: all images of a run of up to {MIN_MEASURED}; of a larger run {MEASURED_SHARE * 100:g} %, but at "
        f"least {MIN_MEASURED} and at most {MAX_MEASURED}. Measuring an image takes about ten times the work of encoding "
        "it, so the default takes at most 5 % of the time of a large run.",
    )
    prefix: str | None = Field(
        None,
        description="Put this name in front of the names of all images (north/a.jpg), to keep several inputs apart in one "
        "OUTPUT.",
    )
    limit: int | None = Field(None, ge=1, description="Process at most N images, a random sample of those to process.")
    limit_order: Literal["random", "first"] = Field(
        "random",
        description="Choose the images of `limit` at random, always in the same order, or take the first ones by name.",
    )
    retry_failed: bool | str = Field(
        False,
        description="Process only images that failed before and have not changed since. With a class, such as "
        "TooManyPixels, process only images that failed with this class.",
    )
    allow_new_input: bool = Field(
        False,
        description="Replace outputs of images that came from another input, after INPUT was moved or renamed. Without it, "
        "such a run is refused, because two inputs can hold different images of the same name.",
    )
    accept_damaged: bool = Field(
        False,
        description="Accept damaged and truncated images: their rows have damaged=true. Without it, each of them is a "
        "reject of the class DamagedImage.",
    )
    strict: bool = Field(
        False,
        description="End with exit code 5 if a folder of INPUT cannot be read. All other images are processed before.",
    )
    max_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        description="Reject images with more pixels than this. Outputs of upscale have four times as many pixels.",
    )
    image_timeout_s: float = Field(
        600,
        gt=0,
        allow_inf_nan=False,
        description="End a worker that is stuck on an image for this many seconds. The image is a reject of the class "
        "Timeout, and a new worker processes the other images. Reads from a bucket, a URL or a shard have 1,800 s more.",
    )
    image: ImageConfig = ImageConfig()
    max_reject_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="End with exit code 3 if more than this share of the images are rejects. All rows are committed. Images "
        "that earlier runs rejected do not count, unless they are more than this share of the whole input.",
    )
    min_rejects: int = Field(1, ge=1, description="Apply max_reject_fraction only if at least this many images are rejects.")
    rows_per_part: int = Field(250, ge=1, description="Commit after this many rows: the rows of one Parquet part.")
    compression_level: int = Field(
        9,
        ge=1,
        le=22,
        description="Compress Parquet parts with this zstd level. 1 is fast and gives 8 % more bytes than 9, 19 is slow and "
        "gives a tenth fewer.",
    )
    pool: PoolConfig = PoolConfig()
    source: SourceConfig = SourceConfig()
    storage: StorageConfig = StorageConfig()
    engine: Literal["auto", "local", "ray"] = Field(
        "auto",
        description="Run workers as processes of this machine (local) or as Ray actors (ray). auto: ray with an address, in "
        "a submitted job and on a machine with a GPU, else local.",
    )
    address: str | None = Field(None, description="Run on the Ray cluster at this address. Default: on this machine alone.")

    def measured_share(self, images: int) -> float:
        """Return the share, 0 to 1, of `images` (at least 1) whose quality a task that stores latents measures.

        The share depends on the number of images alone, never on time, so that a repeated run measures the same images.
        """
        if self.reconstruct:
            return 1.0
        default = min(max(MEASURED_SHARE * images, MIN_MEASURED), MAX_MEASURED)
        return min(1.0, (default if self.quality is None else self.quality) / images)

    @field_validator("retry_failed")
    @classmethod
    def check_class_name(cls, value: bool | str) -> bool | str:
        """Reject text that cannot be the class of a reject."""
        if isinstance(value, str) and not value.isidentifier():
            raise ValueError("must be true, false or the class of a reject, such as TooManyPixels")
        return value

    @field_validator("quality", mode="before")
    @classmethod
    def convert_booleans(cls, value: Any) -> Any:
        """Turn true and false, which configs of older runs use, into the default and no images."""
        return (None if value else 0) if isinstance(value, bool) else value


class Loader(yaml.SafeLoader):
    """A YAML loader that reads 22:30 and 2026-03-01 as text, not as a number in base 60 and a date."""


NUMBERS = {"tag:yaml.org,2002:int": r"[-+]?(?:0b[01_]+|0[0-7_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)"}
NUMBERS["tag:yaml.org,2002:float"] = (
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"
)
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (*NUMBERS, "tag:yaml.org,2002:timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for tag, pattern in NUMBERS.items():
    Loader.add_implicit_resolver(tag, re.compile(f"^(?:{pattern})$"), list("-+.0123456789"))


def yaml_value(text: str) -> Any:
    """Return the value of a YAML text.

    Raises:
        yaml.YAMLError: when the text is malformed.
    """
    return yaml.load(text, Loader)


def read_yaml(path: str) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: when the file is missing, malformed, or not a mapping.
    """
    try:
        content = yaml_value(Path(path).read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(e).split())[:200]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping of keys to values, not {type(content).__name__}")
    return content


def set_value(values: dict[str, Any], assignment: str, option: str = "--set") -> None:
    """Set a key in nested mappings from the text `key.inner=value`; the value is read as YAML.

    Args:
        values: the nested mappings.
        assignment: the text.
        option: the option that the text was given to, for messages.

    Raises:
        ConfigError: when the text has another form, or a part of the key is not a group.
    """
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise ConfigError(f"{option} {assignment}: must be key=value")
    *outer, last = key.split(".")
    for part in outer:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{option} {assignment}: {part} is not a group of keys")
        values = inner
    try:
        # A value such as #00ff00 is a colour, not a comment.
        values[last] = text if text.startswith("#") else yaml_value(text)
    except yaml.YAMLError:
        values[last] = text


def keys_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Return the valid keys of the group that `path` leads to."""
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        if field is None:
            return []
        inner = [
            t for t in (field.annotation, *get_args(field.annotation)) if isinstance(t, type) and issubclass(t, BaseModel)
        ]
        if not inner:
            return []
        model = inner[0]
    return sorted(model.model_fields)


def is_secret(model: type[BaseModel], path: tuple[Any, ...]) -> bool:
    """Return whether the last key of `path` that a config declares has a value that no message may show (repr=False)."""
    shown = True
    for part in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or part not in model.model_fields:
            break
        field = model.model_fields[part]
        shown, model = field.repr, field.annotation  # type: ignore[assignment]
    return not shown


def validate(model: type[Model], values: dict[str, Any], origin: str, group: tuple[str, ...] = ()) -> Model:
    """Validate values as a config, or as one group of a config.

    Args:
        model: class of the config.
        values: keys and values.
        origin: file or command that the values come from, for messages.
        group: keys that lead to the group.

    Raises:
        ConfigError: names each invalid key, its value and the valid choices.
    """
    try:
        return model.model_validate(values)
    except ValidationError as e:
        lines = []
        # Valid keys of a group → unknown keys in the group.
        unknown: dict[str, list[str]] = {}
        for error in e.errors():
            key = ".".join(map(str, (*group, *error["loc"])))
            if error["type"] == "extra_forbidden":
                valid_keys = keys_at(model, error["loc"])
                similar = get_close_matches(str(error["loc"][-1]), valid_keys, n=1)
                suggestion = f" (did you mean {similar[0]}?)" if similar else ""
                unknown.setdefault(", ".join(valid_keys), []).append(f"{key!r}{suggestion}")
            elif error["type"] == "missing":
                lines.append(f"{key} is missing")
            elif not error["loc"]:
                lines.append(error["msg"])  # An error about several keys.
            else:
                is_unquoted = error["type"] == "string_type" and isinstance(error["input"], UNQUOTED)
                quotes = "; put it in quotes" if is_unquoted else ""
                message = error["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
                value = "" if is_secret(model, error["loc"]) else f" = {error['input']!r}"
                lines.append(f"{key}{value}: {message}{quotes}")
        for valid, keys in unknown.items():
            lines.append(f"unknown {'key' if len(keys) == 1 else 'keys'} {', '.join(keys)}; valid: {valid or 'none'}")
        raise ConfigError(f"{origin}: {'; '.join(lines)}") from None
