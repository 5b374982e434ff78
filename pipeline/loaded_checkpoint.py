"""A checkpoint in memory for notebooks and scripts: arrays or PIL images of any size in, images of the same kind out.

    checkpoint = LoadedCheckpoint.load("denoise-small")
    clean = checkpoint(noisy, sigma=25)

    checkpoint = LoadedCheckpoint.load("compress-small")
    latent = checkpoint.encode(photo, step=26)
    rgb = checkpoint.decode(latent)

Padding, tiling and cropping happen inside, in the code that runs use (`TaskObjective.predict`). With the same parameters,
device and number format, latents decode to exactly the pixels that a run writes. Outputs of other tasks may differ by one
level in a few pixels, because a run processes images of equal size in batches, which round differently.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from imagemill.models import checkpoint as checkpoints
from imagemill.models.autoencoder import LatentCoder, Network
from imagemill.models.card import Card
from imagemill.models.errors import CheckpointError
from imagemill.models.latents import decode_latent
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision, select_dtype
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.card_checks import check_card, check_dtype, tasks_for
from imagemill.models.tasks.task import Output, Params, Sample, SampleError
from imagemill.models.type_checks import require_type, require_value
from imagemill.pipeline.config import validate
from imagemill.pipeline.errors import ConfigError
from imagemill.pipeline.images.transparency import fill_hidden, match_alpha
from imagemill.pipeline.output.style_images import read_image
from imagemill.pipeline.storage_config import StorageConfig
from imagemill.pipeline.user_code import permitted, read_user_code
from imagemill.pipeline.worker_memory import model_memory

AnyImage = TypeVar("AnyImage", np.ndarray, Image.Image)
StyleImage = str | np.ndarray | Image.Image
"""A file, an s3:// URL, an array or a PIL image."""
MASK_THRESHOLD = 128
ARRAY_SHAPES = "(H,W), (H,W,3) or (H,W,4)"
PIL_MODES = {"1": "L", "L": "L", "LA": "LA", "La": "LA", "PA": "RGBA", "RGBA": "RGBA", "RGBa": "RGBA"}
"""PIL modes that are gray or have alpha, and the mode that their pixels are read in. Other 8-bit modes are read as RGB."""
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Latent:
    """The latent of one image, and what `LoadedCheckpoint.decode` needs to restore the image.

    Attributes:
        values: (C,h,w): symbols int8, or unscaled values float32 of a checkpoint with float latents.
        height: of the image, in pixels.
        width: of the image, in pixels.
        step: quantiser step of symbols, in 8-bit levels; None for float values.
    """

    values: np.ndarray
    height: int
    width: int
    step: float | None = None


@dataclass
class Pixels:
    """An array or PIL image as the networks take it.

    Attributes:
        rgb: (H,W,3) uint8, a copy.
        alpha: (H,W) uint8, or None for an image without transparency.
        is_gray: whether the image has one channel of colour.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None
    is_gray: bool


class LoadedCheckpoint:
    """A network with its weights, ready to process single images.

    Calls run on `threads` torch threads, one by default: convolutions on several threads add up in another order, so that a
    few pixels differ by one level from those of a run. More threads are faster for large images.

    Args:
        card: what the checkpoint says about itself.
        weights: the bytes of its weights.safetensors.
        device: "cpu" or "cuda"; CUDA if available when absent.
        dtype: "float32", "bfloat16" or "float16"; the fastest of the device when absent, as in a run.
        storage: where style images at s3:// URLs are.
        threads: torch threads of each call, on a CPU.

    Raises:
        CheckpointError: when the weights do not fit the architecture, or no command runs the checkpoint's task.
    """

    def __init__(
        self,
        card: Card,
        weights: bytes,
        *,
        device: str | None = None,
        dtype: str | None = None,
        storage: StorageConfig = StorageConfig(),
        threads: int = 1,
    ) -> None:
        [task_name, *_] = tasks_for(card)
        if task_name not in TASKS:
            raise CheckpointError(
                f"checkpoint {card.name}: task {card.task} is only a start for training. Tasks that process images: "
                f"{', '.join(TASKS)}"
            )
        self.card, self.storage, self.threads = card, storage, threads
        self.task, self.objective = TASKS[task_name], TASK_OBJECTIVES[task_name]
        check_dtype(card.name, card, dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Network = checkpoints.load_model(card, weights, device)
        number_format = select_dtype(device, dtype or self.task.dtype, self.model.dtypes)
        self.precision = Precision(device, number_format, model_memory(device))

    @classmethod
    def load(
        cls,
        name_or_path: str,
        *,
        device: str | None = None,
        dtype: str | None = None,
        storage: StorageConfig = StorageConfig(),
        threads: int = 1,
        code: str | None = None,
    ) -> "LoadedCheckpoint":
        """Read a checkpoint by its bundled name, folder or URL; the other arguments are those of the class.

        Args:
            name_or_path: bundled name, folder or URL.
            device: as for the class.
            dtype: as for the class.
            storage: as for the class.
            threads: as for the class.
            code: allow the checkpoint to run Python code from this folder, or "installed" code.

        Raises:
            CheckpointError: when the checkpoint is missing, damaged, its weights do not fit, or it needs `code`.
            ConfigError: when there is no such folder.
        """
        card, weights = checkpoints.read(str(name_or_path), storage.options_for(str(name_or_path)))
        with permitted(read_user_code(code)):
            return cls(card, weights, device=device, dtype=dtype, storage=storage, threads=threads)

    def __repr__(self) -> str:
        device, dtype = self.precision.device, str(self.precision.dtype).removeprefix("torch.")
        return f"LoadedCheckpoint({self.card.name!r}, task={self.task.name!r}, device={device!r}, dtype={dtype!r})"

    @property
    def scale(self) -> int:
        """Height and width of an output divided by those of its input."""
        return self.model.scale

    def __call__(
        self,
        image: AnyImage,
        *,
        mask: np.ndarray | Image.Image | None = None,
        style: StyleImage | Sequence[StyleImage] | None = None,
        seed: int = 0,
        **params: Any,
    ) -> AnyImage:
        """Process one image: denoise, restore, inpaint, colorize, stylize or enlarge it; `compress` encodes and decodes it.

        Args:
            image: (H,W), (H,W,3) or (H,W,4) uint8, or a PIL image of 8 bits a channel, as it is stored: call
                `PIL.ImageOps.exif_transpose` first to turn a photo upright. Any size.
            mask: for `inpaint` with missing="file", of the size of the image: (H,W) bool, True where pixels are missing; or
                uint8 or a PIL image, at least 128 where pixels are missing.
            style: for `stylize`: one or several style images as files, s3:// URLs, arrays or PIL images.
            seed: of the damage that `inpaint` with missing="random" draws.
            **params: parameters of the task, as in the key `params` of a run.

        Returns:
            An image of the same kind. A gray image stays gray unless the task adds colours; alpha is kept and resized, and
            `inpaint` with missing="alpha" drops it.

        Raises:
            ConfigError: for an unknown or invalid parameter or style image.
            CheckpointError: when the network cannot do what the parameters ask.
            ValueError: for an image or a mask that cannot be used.
        """
        checked, styles = self._check_params(params, style)
        pixels = to_pixels(image)
        sample = Sample(pixels.rgb, pixels.alpha, self._check_mask(mask, checked, pixels), seed, needs_quality=False)
        output = self._predict(sample, checked, styles)
        result = require_value(output.image, "the output image")
        alpha = None if output.drops_alpha else match_alpha(pixels.alpha, result)
        processed = from_pixels(Pixels(result, alpha, pixels.is_gray and not output.has_colours))
        return processed if isinstance(image, Image.Image) else np.asarray(processed)

    def encode(self, image: np.ndarray | Image.Image, *, seed: int = 0, **params: Any) -> Latent:
        """Compute the latent of one image with a checkpoint of `compress`.

        Args:
            image: as for `__call__`; alpha is ignored.
            seed: of the noise with latents="sample".
            **params: parameters of `compress`. For integer latents, `step` is the quantiser step in 8-bit levels, 18 to 128.
                For float latents, `latents` is "mode" or "sample", and `latent_dtype` "float32" or "float16".

        Raises:
            ConfigError: for an unknown or invalid parameter.
            CheckpointError: when the task has no latents.
            ValueError: for an image that cannot be used.
        """
        self._check_latents("encode")
        checked, _ = self._check_params(params, None)
        rgb = to_pixels(image).rgb
        height, width = rgb.shape[:2]
        output = self._predict(Sample(rgb, seed=seed, needs_image=False, needs_quality=False), checked, [])
        latent = require_value(output.latent, "the latent")
        # Values that are rounded to float16 are float32, as in the rows of a run.
        values = latent if latent.dtype == np.int8 else latent.astype(np.float32)
        return Latent(values, height, width, output.columns.get("step"))

    def decode(self, latent: Latent) -> np.ndarray:
        """Return the image (height,width,3) uint8 of a latent, equal to what `imagemill decode` writes for it.

        Raises:
            CheckpointError: when the task has no latents.
            ValueError: when the latent does not fit the network or its own size.
        """
        self._check_latents("decode")
        if isinstance(model := self.model, FloatCoder):
            channels, dtype = model.latent.channels, "float32"
            sides = [model.padded_side(side) // model.factor for side in (latent.height, latent.width)]
        else:
            model, dtype = require_type(model, LatentCoder), "int8"
            channels = len(model.dequantisation(require_value(latent.step, "the quantiser step"))[0])
            sides = [-(-side // model.stride) for side in (latent.height, latent.width)]
        shape = channels, *sides
        if latent.values.dtype != dtype or latent.values.shape != shape:
            raise ValueError(
                f"latent: {latent.values.dtype} of shape {latent.values.shape}, but checkpoint {self.card.name} needs "
                f"{dtype} of shape {shape} for {latent.width}×{latent.height} pixels. Pass what its encode returned"
            )
        with torch_threads(self.threads):
            return decode_latent(model, latent.values, (latent.height, latent.width), latent.step, self.precision.device)

    def _predict(self, sample: Sample, params: Params, styles: list[np.ndarray]) -> Output:
        with torch_threads(self.threads):
            check_card(self.card.name, self.card, self.task, params)
            self.objective.check(self.model, params)
            model = self.objective.prepare(self.model, params, styles, self.precision.device)
            try:
                [output] = self.objective.predict(model, [sample], params, self.precision)
            except SampleError as e:
                raise ValueError(f"image: {e}") from None
        return output

    def _check_latents(self, method: str) -> None:
        if not self.task.stores_latent:
            able = ", ".join(name for name, task in TASKS.items() if task.stores_latent)
            raise CheckpointError(
                f"checkpoint {self.card.name}: {method} needs a checkpoint of the task {able}, and this one is for "
                f"{self.task.name}. Call the checkpoint itself: checkpoint(image)"
            )

    def _check_params(
        self, params: dict[str, Any], style: StyleImage | Sequence[StyleImage] | None
    ) -> tuple[Params, list[np.ndarray]]:
        """Return the task's parameters and the style images (H,W,3) uint8."""
        key = self.task.style_param
        if key is None and style is not None:
            raise ConfigError(f"style: the task {self.task.name} uses no style images. Leave style out")
        styles = [style] if isinstance(style, StyleImage) else list(style or ())
        images = [self._style_pixels(each, f"style[{n}]") for n, each in enumerate(styles)]
        if key and images:
            params = params | {key: [each if isinstance(each, str) else f"image {n}" for n, each in enumerate(styles)]}
        return validate(self.task.Params, params, self.task.name), images

    def _style_pixels(self, style: StyleImage, key: str) -> np.ndarray:
        rgb = read_image(key, style, self.storage, None)[1] if isinstance(style, str) else to_pixels(style, key).rgb
        height, width = rgb.shape[:2]
        if min(height, width) < self.task.min_style_side:
            raise ConfigError(
                f"{key}: {width}×{height} pixels, but each side must have at least {self.task.min_style_side}. "
                "Choose a larger image"
            )
        return rgb

    def _check_mask(self, mask: np.ndarray | Image.Image | None, params: Params, pixels: Pixels) -> np.ndarray | None:
        """Return the mask as a sample holds it: (H,W) uint8, 255 where a pixel is missing, else 0."""
        needs_mask = self.task.needs_mask(params)
        if mask is None:
            if needs_mask:
                raise ValueError('mask: missing. Pass mask=…, or choose missing="alpha", "key", "red", "green" or "blue"')
            return None
        if not needs_mask:
            raise ValueError(f'mask: {self.task.name} uses a mask only with missing="file". Leave mask out')
        values = np.asarray(mask.convert("L") if isinstance(mask, Image.Image) else mask)
        if values.dtype not in (np.bool_, np.uint8) or values.shape != pixels.rgb.shape[:2]:
            raise ValueError(
                f"mask: {values.dtype} of shape {values.shape}, but the image needs bool or uint8 of shape "
                f"{pixels.rgb.shape[:2]}"
            )
        missing = values if values.dtype == np.bool_ else values >= MASK_THRESHOLD
        return missing.view(np.uint8) * np.uint8(255)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set the number of torch threads inside a `with` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def to_pixels(image: np.ndarray | Image.Image, key: str = "image") -> Pixels:
    """Copy an array or PIL image to RGB and alpha; colours under full transparency are filled in, as in a run.

    Raises:
        ValueError: for a dtype, shape or mode that cannot be used; `key` names the image in the message.
    """
    if isinstance(image, Image.Image):
        if image.mode in DEEP_MODES:
            raise ValueError(f"{key}: PIL mode {image.mode} has more than 8 bits. Scale the image to 8 bits first")
        mode = "RGBA" if image.mode == "P" and "transparency" in image.info else PIL_MODES.get(image.mode, "RGB")
        array = np.asarray(image.convert(mode))
    else:
        mode, array = "", np.asarray(image)
    if array.dtype != np.uint8:
        raise ValueError(f"{key}: dtype {array.dtype}, but must be uint8 in [0,255]. Convert the image first")
    if 0 in array.shape or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (2 if mode else 3, 3, 4)):
        raise ValueError(f"{key}: shape {array.shape}, but must be {ARRAY_SHAPES} with at least one pixel")
    planes = array if array.ndim == 3 else array[..., None]
    has_alpha, is_gray = planes.shape[2] in (2, 4), planes.shape[2] < 3
    rgb = planes[..., :1].repeat(3, 2) if is_gray else planes[..., :3].copy()
    alpha = planes[..., -1].copy() if has_alpha else None
    if alpha is not None:
        fill_hidden(rgb, alpha)
    return Pixels(rgb, alpha, is_gray)


def from_pixels(pixels: Pixels) -> Image.Image:
    """Return the PIL image of pixels in the mode L, LA, RGB or RGBA."""
    image = Image.fromarray(np.ascontiguousarray(pixels.rgb))
    if pixels.is_gray:
        image = image.convert("L")
    if pixels.alpha is not None:
        image.putalpha(Image.fromarray(pixels.alpha))
    return image
