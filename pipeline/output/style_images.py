"""Images that a person names beside INPUT: styles, what is searched by.

Those of a run are read once by the driver, kept in OUTPUT, and read there by its actors.
"""

import hashlib

import numpy as np

from imagemill.models.tasks.task import Params, Task
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.decode import decode_image
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.storage import StorageConfig, Store
from imagemill.pipeline.store_failures import STORE_FAILURES, reason

FOLDER = "exemplars"
"""Folder of OUTPUT that holds style images. Existing outputs have this name, so it stays."""


def read_style_images(config: RunConfig, task: Task, params: Params) -> list[tuple[str, bytes]]:
    """sha256 and content of the files that the parameters name; each one is an image that will do.

    Raises: ConfigError for one that is not there, no image, too large or too small; StorageError.
    """
    key = task.style_param
    found = []
    for url in getattr(params, key) if key else ():
        data, rgb = read_image(f"{key} {url}", url, config.storage, config.max_pixels)
        height, width = rgb.shape[:2]
        if min(height, width) < task.min_style_side:
            raise ConfigError(f"{key} {url}: {width}×{height} pixels; {task.min_style_side} a side are the least")
        found.append((hashlib.sha256(data).hexdigest(), data))
    return found


def read_image(
    what: str, url: str, storage: StorageConfig, max_pixels: int | None, pixels: ImageConfig = ImageConfig()
) -> tuple[bytes, np.ndarray]:
    """An image that a person names, a file or an s3:// URL: its bytes, and itself, (H,W,3) uint8.

    Args: what: how an error calls it.

    Raises: ConfigError when it is not there or no image; StorageError.
    """
    folder, _, name = url.rpartition("/")
    try:
        data = Store(folder or ("/" if url.startswith("/") else "."), storage).read(name)
        return data, decode_image(data, max_pixels, pixels).rgb
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{what}: no such file") from None
    except ImageError as e:
        raise ConfigError(f"{what}: {e.error_class}: {e}") from None
    except STORE_FAILURES as e:
        raise StorageError(f"{what}: {reason(e)}") from None


def store_style_images(output: Store, style_images: list[tuple[str, bytes]]) -> None:
    """Store the style images of a run in OUTPUT, like `store_checkpoint`."""
    for sha256, data in style_images:
        if not output.exists(style_image_path(sha256)):
            output.write(style_image_path(sha256), data)


def load_style_images(output: Store, digests: list[str], max_pixels: int) -> list[np.ndarray]:
    """What `store_style_images` left in OUTPUT, (H,W,3) uint8 each."""
    return [decode_image(output.read(style_image_path(sha256)), max_pixels).rgb for sha256 in digests]


def style_image_path(sha256: str) -> str:
    return f"{FOLDER}/{sha256[:16]}"
