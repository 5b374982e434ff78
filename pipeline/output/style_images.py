"""Images that a user names in addition to INPUT: style images, and the query image of a search.

The driver reads the style images of a run once and stores them in OUTPUT, where the workers read them.
"""

import hashlib
from typing import TYPE_CHECKING

from imagemill.models.tasks.task import Params, Task
from imagemill.pipeline.config import RunConfig
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.images.config import ImageConfig
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.storage import Store
from imagemill.pipeline.storage_config import StorageConfig
from imagemill.pipeline.store_failures import reason, store_failures

if TYPE_CHECKING:
    import numpy as np

FOLDER = "exemplars"
"""Folder of OUTPUT that holds style images. Existing outputs have this name, so it stays."""


def read_style_images(config: RunConfig, task: Task, params: Params) -> list[tuple[str, bytes]]:
    """Read and check the style images that the parameters name.

    Returns:
        SHA-256 digest and content of each file.

    Raises:
        ConfigError: When a file is missing, is no image, or is too large or too small.
        StorageError: When the storage fails.
    """
    key = task.style_param
    style_images = []
    for url in getattr(params, key) if key else ():
        data, rgb = read_image(f"{key} {url}", url, config.storage, config.max_pixels)
        height, width = rgb.shape[:2]
        if min(height, width) < task.min_style_side:
            raise ConfigError(f"{key} {url}: {width}×{height} pixels; {task.min_style_side} a side are the least")
        style_images.append((hashlib.sha256(data).hexdigest(), data))
    return style_images


def read_image(
    what: str, url: str, storage: StorageConfig, max_pixels: int | None, pixels: ImageConfig = ImageConfig()
) -> "tuple[bytes, np.ndarray]":
    """Read an image that a user names by path or s3:// URL.

    Args:
        what: start of an error message, for example "style painting.png".
        url: path or s3:// URL.
        storage: how to reach the URL.
        max_pixels: size limit; None for no limit.
        pixels: how to decode the image.

    Returns:
        The bytes of the file, and the image (H,W,3) uint8.

    Raises:
        ConfigError: When the file is missing or is no image.
        StorageError: When the storage fails.
    """
    from imagemill.pipeline.images.decode import decode_image

    folder, _, name = url.rpartition("/")
    try:
        data = Store(folder or ("/" if url.startswith("/") else "."), storage).read(name)
        return data, decode_image(data, max_pixels, pixels).rgb
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"{what}: no such file") from None
    except ImageError as e:
        raise ConfigError(f"{what}: {e.error_class}: {e}") from None
    except store_failures() as e:
        raise StorageError(f"{what}: {reason(e)}") from None


def store_style_images(output: Store, style_images: list[tuple[str, bytes]]) -> None:
    """Store the style images of a run in OUTPUT, like `store_checkpoint`."""
    for sha256, data in style_images:
        if not output.exists(style_image_path(sha256)):
            output.write(style_image_path(sha256), data)


def load_style_images(output: Store, digests: list[str], max_pixels: int) -> "list[np.ndarray]":
    """Read the style images that `store_style_images` wrote; each is (H,W,3) uint8."""
    from imagemill.pipeline.images.decode import decode_image

    return [decode_image(output.read(style_image_path(sha256)), max_pixels).rgb for sha256 in digests]


def style_image_path(sha256: str) -> str:
    """Return the path of a style image in OUTPUT."""
    return f"{FOLDER}/{sha256[:16]}"
