"""The last stage of an image in a worker: encode its output, write the file, build the row."""

import hashlib
import logging
import math
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from imagemill.models.tasks.task import Output, Task
from imagemill.models.type_checks import require_value
from imagemill.pipeline.errors import OutputHeld, StorageError
from imagemill.pipeline.images.decode import DecodedImage
from imagemill.pipeline.images.encode import check_output_size, choose_output_format, encode_output, encode_rgb, to_pillow
from imagemill.pipeline.images.errors import ImageError
from imagemill.pipeline.images.transparency import match_alpha
from imagemill.pipeline.item import Item, Rejected, build_reject
from imagemill.pipeline.output.latent_symbols import image_size
from imagemill.pipeline.output.lease import check_newest
from imagemill.pipeline.output.name_clashes import CLASHES
from imagemill.pipeline.output.output_names import decoded_name, fallback_name, is_name_refused, output_name
from imagemill.pipeline.schema import latent_bytes, pack_latent
from imagemill.pipeline.sources.addresses import redact_secrets
from imagemill.pipeline.sources.folder import is_image_name
from imagemill.pipeline.store_failures import is_unwritable, reason
from imagemill.pipeline.tally import Tally
from imagemill.pipeline.watchdog import Watchdog
from imagemill.pipeline.worker_job import WorkerJob

log = logging.getLogger("imagemill.finish")
CLAIM_CHECK_SECONDS = 10.0
"""A worker that writes images checks at least this often that its run still holds the output."""
NO_PIXELS = np.empty((0, 0, 3), np.uint8)


class RowBuilder:
    """Builds the row of each item, failed or not. Several threads call it.

    Args:
        job: the same for all images of a run.
        task: the task of the run.
        tally: counts the images and the seconds of each stage.
        watchdog: ends the process if an image cannot be encoded in time.
    """

    def __init__(self, job: WorkerJob, task: Task, tally: Tally, watchdog: Watchdog) -> None:
        self.job, self.task, self.tally, self.watchdog = job, task, tally, watchdog
        self._last_claim_check: tuple[float, ...] | None = None

    def __call__(self, item: Item) -> Item:
        """Encode and write the output of an item, and set its row.

        Raises:
            StorageError: when the output accepts no more files.
            OutputHeld: when another run holds the output.
        """
        base = {name: item.reference[name] for name in ("image_id", "version", "source_uri", "rel_path", "source_etag")}
        base |= {**self.job.lineage, "encoded_at": datetime.now(UTC)}
        try:
            if item.error is None:
                output, item.output = require_value(item.output, "the output of the model"), None
                item.row = base | self._write_output(item, output)
                self.tally.add(ok=1)
                return item
        except Rejected as e:
            item.error = e.row
        except ImageError as e:
            item.error = Rejected("encode", e.error_class, str(e)).row
        except (OutputHeld, StorageError):
            raise
        except Exception as e:  # noqa: BLE001 - any error of one image must not fail the others
            item.error = build_reject("encode", e, isinstance(e, MemoryError)).row
        finally:
            item.picture = None
        error: dict[str, Any] = item.error or {}
        item.row = base | error | {"attempts": item.reference["attempts"] + 1}
        self.tally.add(rejected=1, **{f"rejected:{error['stage']}:{error['error_class']}": 1})
        fields = {"image_id": base["image_id"], **error, "error": redact_secrets(error["error"])}
        log.warning("%s: %s", redact_secrets(base["source_uri"]), fields["error"], extra=fields)
        return item

    def _write_output(self, item: Item, output: Output) -> dict[str, Any]:
        """Write the output image, return the columns of the row, and release the pixels of item and output."""
        # The pixels of the source image are no longer needed, and encoding needs memory.
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
            **picture.fitting,
            **output.columns,
        }
        with self.watchdog.step("encode", item.reference["image_id"]), self.tally.time("encode"):
            if output.latent is not None:
                row |= pack_latent(output.latent, output.payload)
                output.latent = None
                # The size of a list is that of its compressed bytes, which take time to compute.
                is_list = "latent" in row or "latent_values" in row
                if not is_list or item.is_in_sample(self.job.quality):
                    size = latent_bytes(row, self.job.compression_level)
                    row["bits_per_pixel"] = size * 8 / math.prod(image_size(row))
            if output.image is None:
                return row
            data, name = self._encode(item, output, picture)
        self._check_claim()
        # An output that blocks is not the fault of an image, so writes have no time limit.
        with self.tally.time("put"):
            path = self._write_file(item, name, data)
        self.tally.add(bytes_out=len(data))
        return row | {
            "output_uri": path,
            "output_sha256": hashlib.sha256(data).hexdigest(),
            "output_bytes": len(data),
        }

    def _check_claim(self) -> None:
        """Check that the run still holds the output, unless the last check is recent (CLAIM_CHECK_SECONDS).

        Raises:
            OutputHeld: when another run holds the output.
        """
        # The monotonic clock stops while a laptop sleeps, and the wall clock may be set, so both must be recent.
        now = time.monotonic(), time.time()
        last = self._last_claim_check
        if not last or any(abs(b - a) > CLAIM_CHECK_SECONDS for a, b in zip(last, now, strict=True)):
            check_newest(self.job.output, self.job.lineage["fence"])
            self._last_claim_check = now

    def _write_file(self, item: Item, name: str, data: bytes) -> str:
        """Write an output file, under another name if the output cannot hold `name`; return its path in the output."""
        fallback = fallback_name(item.reference["rel_path"], name)
        path = f"images/{fallback if item.reference.get(CLASHES) else name}"
        try:
            try:
                self._replace_own(item, path, data)
            except OSError as e:
                if not is_name_refused(e):
                    raise
                path = f"images/{fallback}"
                self._replace_own(item, path, data)
        except Rejected:
            raise
        except Exception as e:  # noqa: BLE001 - any error of one image must not fail the others
            if is_unwritable(e):
                raise StorageError(f"{self.job.output.uri(path)}: {reason(e)}") from None
            raise build_reject("write", e, transient=True) from None
        return path

    def _replace_own(self, item: Item, path: str, data: bytes) -> None:
        """Write an output file, but do not replace a file that no run wrote.

        An interrupted run, or an earlier attempt at this block, may have left a file that no row names. Such a file is newer
        than the run's first mark (ownership.oldest_unaccounted_file) or has the same bytes.

        Raises:
            Rejected: when a file that no run wrote has this name.
        """
        output = self.job.output
        if not item.reference["known"]:
            if output.create(path, data):
                return
            mark = self.job.oldest_unaccounted_file
            if mark and output.written_at(path) < output.written_at(mark) and output.read(path) != data:
                message = f"{path}: a file that no run wrote has this name. Move the file away and pass --retry-failed"
                raise Rejected("write", "FileExists", message)
        output.write(path, data)

    def _encode(self, item: Item, output: Output, picture: DecodedImage) -> tuple[bytes, str]:
        """Return the encoded output image and its path below images/."""
        rgb, output.image = require_value(output.image, "the output's image"), None
        name = item.reference["rel_path"]
        if self.task.stores_latent:
            return encode_rgb(rgb, "PNG"), decoded_name(name)
        has_alpha = picture.alpha is not None and not output.drops_alpha
        has_profile = picture.profile is not None
        image_format = choose_output_format(
            picture.format, self.task.needs_lossless, self.job.image.format, has_alpha, has_profile
        )
        picture.is_gray = picture.is_gray and not output.has_colours
        picture.alpha = None if output.drops_alpha else match_alpha(picture.alpha, rgb)
        source_format = "JPEG" if picture.format == "MPO" else picture.format
        # The name of a shard member may be only a number.
        needs_suffix = image_format != source_format or not is_image_name(name)
        check_output_size(rgb.shape[1::-1], image_format)
        image = to_pillow(rgb, picture, image_format)
        # Pillow has its own copy now.
        del rgb
        data = encode_output(image, picture, image_format, self.job.image.quality)
        return data, output_name(name, f".{image_format.lower()}" if needs_suffix else None)
