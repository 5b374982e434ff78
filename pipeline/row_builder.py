"""The end of an image in an actor: its output is encoded and put, and its row made."""

import hashlib
import logging
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from imagemill.models.tasks.task import Output, Task
from imagemill.models.type_checks import require_value
from imagemill.pipeline.cluster.tally import Tally
from imagemill.pipeline.errors import OutputHeld, StorageError
from imagemill.pipeline.images.decode import DecodedImage
from imagemill.pipeline.images.encode import check_output_size, choose_output_format, encode_output, encode_rgb, to_pillow
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.transparency import match_alpha
from imagemill.pipeline.item import Item, Rejected, unexpected
from imagemill.pipeline.output.lease import check_newest
from imagemill.pipeline.output.name_clashes import CLASHES
from imagemill.pipeline.output.output_names import decoded_name, fallback_name, is_name_refused, output_name
from imagemill.pipeline.schema import latent_bytes, pack_latent
from imagemill.pipeline.sources.folder import is_image_name
from imagemill.pipeline.sources.web import redact_secrets
from imagemill.pipeline.store_failures import reason, takes_nothing
from imagemill.pipeline.worker_job import WorkerJob

log = logging.getLogger("imagemill.finish")
HOLDER_SECONDS = 10.0
"""How old it may be, when an image is put, that OUTPUT was seen to be this run's."""
NO_PIXELS = np.empty((0, 0, 3), np.uint8)


class RowBuilder:
    """`finish(item)`: the item with its row, whatever happened to it. Called by several threads."""

    def __init__(self, job: WorkerJob, task: Task, tally: Tally) -> None:
        self.job, self.task, self.tally = job, task, tally
        self._looked: tuple[float, ...] | None = None

    def __call__(self, item: Item) -> Item:
        """Raises: StorageError when OUTPUT takes nothing more; OutputHeld when it is another run's."""
        now = datetime.now(UTC)
        base = {k: item.reference[k] for k in ("image_id", "version", "source_uri", "rel_path", "source_etag")}
        base |= {**self.job.lineage, "encoded_at": now}
        try:
            if item.error is None:
                item.row = base | self._result(item, item.row.pop("output"))
                self.tally.add(ok=1)
                return item
        except Rejected as e:
            item.error = e.row
        except ImageError as e:
            item.error = Rejected("encode", e.error_class, str(e)).row
        except (OutputHeld, StorageError):
            raise
        except Exception as e:  # noqa: BLE001 - whatever it is, it is this image's alone
            item.error = unexpected("encode", e, isinstance(e, MemoryError)).row
        finally:
            item.picture = None
        error: dict[str, Any] = item.error or {}
        item.row = base | error | {"attempts": item.reference["attempts"] + 1}
        self.tally.add(rejected=1, **{f"rejected:{error['stage']}:{error['error_class']}": 1})
        told = {"image_id": base["image_id"], **error, "error": redact_secrets(error["error"])}
        log.warning("%s: %s", redact_secrets(base["source_uri"]), told["error"], extra=told)
        return item

    def _result(self, item: Item, output: Output) -> dict[str, Any]:
        """The columns of a row, and the image put where they say. Takes the pixels from item and output."""
        # Nobody needs the source's pixels any more, and encoding needs room.
        picture, item.picture = replace(item.decoded, rgb=NO_PIXELS), None
        row: dict[str, Any] = {
            "content_sha256": item.content_sha256,
            "orig_width": picture.orig_width,
            "orig_height": picture.orig_height,
            "exif_orientation": picture.exif_orientation,
            "has_alpha": picture.has_alpha,
            "bit_depth": picture.bit_depth,
            "frames": picture.frames,
            "icc": picture.icc,
            "extra": item.reference["extra"],
            "damaged": picture.is_damaged,
            **output.columns,
        }
        with self.tally.time("encode"):
            if output.latent is not None:
                row |= pack_latent(output.latent, output.payload)
                output.latent = None
                if "latent" not in row or item.among(self.job.quality):
                    size = latent_bytes(row, self.job.compression_level)
                    row["bits_per_pixel"] = size * 8 / (picture.orig_width * picture.orig_height)
            if output.image is None:
                return row
            data, name = self._encoded(item, output, picture)
        # The first clock stands still while a laptop sleeps, the second may be set.
        looked = time.monotonic(), time.time()
        if not self._looked or any(abs(b - a) > HOLDER_SECONDS for a, b in zip(self._looked, looked, strict=True)):
            check_newest(self.job.output, self.job.lineage["fence"])
            self._looked = looked
        with self.tally.time("put"):
            path = self._put(item, name, data)
        self.tally.add(bytes_out=len(data))
        return row | {
            "output_uri": path,
            "output_sha256": hashlib.sha256(data).hexdigest(),
            "output_bytes": len(data),
        }

    def _put(self, item: Item, name: str, data: bytes) -> str:
        """Write an output, under another name where OUTPUT cannot hold its own; return its path below OUTPUT."""
        other = fallback_name(item.reference["rel_path"], name)
        path = f"images/{other if item.reference.get(CLASHES) else name}"
        try:
            try:
                self._replace(item, path, data)
            except OSError as e:
                if not is_name_refused(e):
                    raise
                path = f"images/{other}"
                self._replace(item, path, data)
        except Rejected:
            raise
        except Exception as e:  # noqa: BLE001 - as in __call__
            if takes_nothing(e):
                raise StorageError(f"{self.job.output.uri(path)}: {reason(e)}") from None
            raise unexpected("write", e, transient=True) from None
        return path

    def _replace(self, item: Item, path: str, data: bytes) -> None:
        """Write the output of an image. Raises: Rejected for a file without a row that no run wrote; as `Store.write`.

        A run that was cut off, or an earlier try of this block, may have left a file of which no row says anything.
        """
        output = self.job.output
        if not item.reference["known"]:
            if output.create(path, data):
                return
            mark = self.job.oldest_unaccounted_file
            if mark and output.age(path) > output.age(mark) and output.read(path) != data:
                message = f"{path}: a file that no run wrote has this name. Move the file away and pass --retry-failed"
                raise Rejected("write", "FileExists", message)
        output.write(path, data)

    def _encoded(self, item: Item, output: Output, picture: DecodedImage) -> tuple[bytes, str]:
        """The output's file and its name below images/."""
        rgb, output.image = require_value(output.image, "the output's image"), None
        name = item.reference["rel_path"]
        if self.task.stores_latent:
            return encode_rgb(rgb, "PNG"), decoded_name(name)
        has_alpha = picture.alpha is not None and not output.drops_alpha
        image_format = choose_output_format(picture.format, self.task.needs_lossless, self.job.image.format, has_alpha)
        picture.is_gray = picture.is_gray and not output.has_colours
        picture.alpha = None if output.drops_alpha else match_alpha(picture.alpha, rgb)
        own = "JPEG" if picture.format == "MPO" else picture.format
        # A member of a shard may be called by a number alone.
        changed = image_format != own or not is_image_name(name)
        check_output_size(rgb.shape[1::-1], image_format)
        image = to_pillow(rgb, picture, image_format)
        # Pillow has a copy of its own now.
        del rgb
        data = encode_output(image, picture, image_format, self.job.image.quality)
        return data, output_name(name, f".{image_format.lower()}" if changed else None)
