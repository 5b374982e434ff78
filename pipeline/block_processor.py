"""The stages of a worker, from references to rows.

Threads fetch (sources/image_reader.py), other threads decode, the model runs on batches of one padded size, threads encode
and write (row_builder.py).
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from imagemill.models.batches import padded_size
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision, select_dtype
from imagemill.models.routes.float_coder import FloatCoder
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Params, SampleError
from imagemill.models.tiling import is_lost_device
from imagemill.models.type_checks import require_value
from imagemill.pipeline.channel import Channel
from imagemill.pipeline.images.decode import decode_image, read_pixel_count
from imagemill.pipeline.images.errors import DAMAGED_IMAGE, ImageError
from imagemill.pipeline.images.masks import decode_mask
from imagemill.pipeline.item import Item, Rejected, build_reject
from imagemill.pipeline.lookahead import map_ahead
from imagemill.pipeline.output.stored_checkpoint import load_stored_model
from imagemill.pipeline.output.style_images import load_style_images
from imagemill.pipeline.pixel_budget import PixelBudget
from imagemill.pipeline.row_builder import RowBuilder
from imagemill.pipeline.schema import LATENT_CONTENT, row_schema
from imagemill.pipeline.sources.host_queue import HostBusy
from imagemill.pipeline.sources.image_reader import ImageReader, Read, ReadError
from imagemill.pipeline.sources.source import UNREADABLE_SHARD, split_problem
from imagemill.pipeline.store_failures import reason
from imagemill.pipeline.suspects import TRIED_BY_RUNS, Suspects
from imagemill.pipeline.tally import Tally
from imagemill.pipeline.watchdog import Step, Watchdog
from imagemill.pipeline.worker_job import WorkerJob
from imagemill.pipeline.worker_memory import model_memory

log = logging.getLogger("imagemill.run")
KEEP_DAMAGED = " Or keep the image as it is with --accept-damaged."
"""Added to the reason of a damaged input image. Masks, style images and training images must be intact."""
DECODE_BYTES = 256_000_000
"""Bytes of encoded images that are being decoded or wait for a thread. One larger image is decoded alone."""
ROWS_BYTES = 64_000_000
"""Maximum bytes of latents in the rows of a table. A block with more latents becomes several tables and parts."""


class BlockProcessor:
    """Turns blocks of references into rows.

    An image that fails raises no exception. It becomes a row with `stage` set.

    Args:
        job: the same for all blocks of a run.
        channel: connects the worker with the driver.
        tally: counts what the worker does.
    """

    def __init__(self, job: WorkerJob, channel: Channel, tally: Tally) -> None:
        self.job, self.channel, self.tally = job, channel, tally
        self.task, self.objective = TASKS[job.task], TASK_OBJECTIVES[job.task]
        self.params: Params = self.task.Params(**job.params)
        self.schema = row_schema(self.task.columns, self.task.stores_latent)
        device = "cuda" if job.gpus and torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(job.torch_threads)
        elif job.gpus < 1:
            # torch keeps freed memory. Without a limit, workers that share the GPU would run out of memory.
            torch.cuda.set_per_process_memory_fraction(job.gpus)
        model = load_stored_model(job.output, job.checkpoint_sha256, device)
        memory = model_memory(device, job.workers, job.torch_threads, job.gpus)
        self.precision = Precision(device, select_dtype(device, job.dtype or self.task.dtype, model.dtypes), memory)
        self.objective.check(model, self.params)
        style_images = load_style_images(job.output, job.style_images, job.max_pixels)
        self.model = self.objective.prepare(model, self.params, style_images, device)
        self.latents: dict[str, Any] = {}
        """Digest of the checkpoint → the contract of its float latents; empty for other networks."""
        if isinstance(model, FloatCoder):
            self.latents[job.checkpoint_sha256] = model.latent.model_dump()
        self.budget = PixelBudget.of_worker(device, job.gpus, job.threads, self.model.scale)
        self.threads = ThreadPoolExecutor(job.threads, thread_name_prefix="image")
        self.reading = ImageReader(job.source, job.fetch_threads)
        self.watchdog = Watchdog(job.image_timeout_s, self._record_timeouts)
        self.suspects: Suspects | None = None
        self.build_row = RowBuilder(job, self.task, self.tally, self.watchdog)
        self.tally.ready(device, job.gpus > 0)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """Yield the rows of a block (schema.row_schema) in its order.

        A block becomes several tables if its latents take much memory (ROWS_BYTES).

        Raises:
            StorageError: when the output accepts no more files.
            OutputHeld: when another run holds the output.
            RunFailed: when too many processes died in this block.
        """
        references = block.to_pylist()
        image_ids = [reference["image_id"] for reference in references]
        self.suspects = suspects = Suspects(self.channel, self.job.lineage["run_id"], image_ids, self.job.image_timeout_s)
        items = self._process_singly(references, suspects) if suspects.is_cause_unknown else self._process(references)
        rows: dict[str, dict[str, Any]] = {}
        latent_bytes = 0
        for item in items:
            rows[item.reference["image_id"]] = item.row
            latent_bytes += sum(memoryview(item.row[name]).nbytes for name in LATENT_CONTENT if name in item.row)
            if latent_bytes > ROWS_BYTES:
                yield self._to_table(references, rows)
                rows, latent_bytes = {}, 0
        suspects.clear()
        yield self._to_table(references, rows)

    def _to_table(self, references: list[dict[str, Any]], rows: dict[str, dict[str, Any]]) -> pa.Table:
        """Return rows, which are stored by image_id, as a table in the order of the references."""
        ids = (reference["image_id"] for reference in references)
        return pa.Table.from_pylist([rows[image_id] for image_id in ids if image_id in rows], self.schema)

    def _process_singly(self, references: list[dict[str, Any]], suspects: Suspects) -> Iterator[Item]:
        """Process one image at a time, because a process died in this block: the next death then identifies its image."""
        for reference in references:
            suspects.name(reference["image_id"])
            yield from self._process([reference])

    def _record_timeouts(self, steps: list[Step]) -> None:
        """Record steps over their time limit; they belong to the block that is being processed."""
        require_value(self.suspects, "the suspects of the block").record_timeouts(steps)

    def _process(self, references: list[dict[str, Any]]) -> Iterator[Item]:
        """Yield the item of each reference, with its finished row."""
        for group in self.budget.split(self.reading.read_ahead(references, self._fetch, self.job.fetch_per_host)):
            depth = 4 * self.job.threads + self.job.batch_size
            yield from map_ahead(lambda item: self.threads.submit(self.build_row, item), self._run_model(group), depth)

    def _run_model(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items with their model outputs, batch by batch, and decode a few items ahead of the model."""

        def decode(item: Item) -> Future[Item]:
            return self.threads.submit(self._decode, item)

        decoded = map_ahead(decode, items, 2 * self.job.threads, Item.encoded_bytes, DECODE_BYTES)
        for batch in self._batches(decoded):
            if batch[0].error is None:
                self._predict(batch)
            yield from batch

    def _batches(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Yield decoded items in batches of one padded size, and each failed item alone."""
        groups: dict[tuple[int, int], list[Item]] = {}
        waiting_pixels = 0
        for item in items:
            if item.picture is None or item.error:
                yield [item]
                continue
            size = padded_size(item.picture.rgb, self.model.stride)
            groups.setdefault(size, []).append(item)
            waiting_pixels += self.budget.pixels_out(size[0] * size[1])
            if len(groups[size]) >= min(self.job.batch_size, self.budget.batch_images(size[0] * size[1])):
                waiting_pixels -= self.budget.pixels_out(size[0] * size[1] * len(groups[size]))
                yield groups.pop(size)
            while waiting_pixels > self.budget.waiting:
                largest = max(groups, key=lambda s: s[0] * s[1] * len(groups[s]))
                waiting_pixels -= self.budget.pixels_out(largest[0] * largest[1] * len(groups[largest]))
                yield groups.pop(largest)
        yield from groups.values()

    def _fetch(self, reference: dict[str, Any], read: Read) -> Item:
        """Return an item with its encoded image and mask, or with its error.

        Raises:
            HostBusy: when the server of a URL is busy and may be asked again.
        """
        item = Item(reference)
        suspects = require_value(self.suspects, "the suspects of the block")
        try:
            if verdict := suspects.verdict(reference["image_id"]):
                raise Rejected(*verdict, transient=reference["attempts"] + 1 < TRIED_BY_RUNS)
            if reference["problem"]:
                error_class, message = split_problem(reference["problem"])
                raise Rejected("list", error_class, message, transient=error_class == UNREADABLE_SHARD)
            image_id, retry_seconds = reference["image_id"], self.reading.retry_seconds(reference)
            with self.watchdog.step("fetch", image_id, extra_s=retry_seconds) as restart, self.tally.time("fetch"):
                item.data, item.mask_data = read(restart)
            self.tally.add(bytes_in=len(item.data))
            with self.watchdog.step("decode", image_id):
                item.content_sha256 = hashlib.sha256(item.data).hexdigest()
                item.pixels = read_pixel_count(item.data)
        except HostBusy:
            raise
        except Rejected as e:
            item.error = e.row
        except ReadError as e:
            item.error = Rejected("fetch", e.error_class, str(e), e.transient).row
        except Exception as e:  # noqa: BLE001 - any error of one image must not fail the others
            item.error = build_reject("fetch", e, isinstance(e, MemoryError)).row
        return item

    def _decode(self, item: Item) -> Item:
        """Decode the image and mask of an item, or set its error."""
        if item.error:
            return item
        try:
            with self.watchdog.step("decode", item.reference["image_id"]), self.tally.time("decode"):
                item.picture = decode_image(item.take_data(), self.job.max_pixels, self.job.image, self.job.accept_damaged)
                item.mask = self._decode_mask(item.mask_data) if item.mask_data is not None else None
        except Rejected as e:
            item.error = e.row
        except ImageError as e:
            advice = KEEP_DAMAGED if e.error_class == DAMAGED_IMAGE else ""
            item.error = Rejected("decode", e.error_class, f"{e}{advice}").row
        except Exception as e:  # noqa: BLE001 - any error of one image must not fail the others
            item.error = build_reject("decode", e, isinstance(e, MemoryError)).row
        item.mask_data = None
        return item

    def _decode_mask(self, data: bytes) -> np.ndarray:
        """Return a mask file as (H,W) uint8: 255 where the image is missing, else 0."""
        try:
            return decode_mask(data, self.job.max_pixels)
        except ImageError as e:
            raise Rejected("decode", f"Mask{e.error_class}", f"the mask: {e}") from None

    def _predict(self, batch: list[Item]) -> None:
        """Run the model on a batch. If the model fails, retry with each half, until a failing image is alone."""
        error = self._predict_once(batch)
        if error is None:
            return
        if len(batch) == 1:
            batch[0].error = error
            return
        # Halves keep batches as large as memory allows. This code is outside the `except` block, because the traceback would
        # keep the memory of the whole batch.
        self._predict(batch[: len(batch) // 2])
        self._predict(batch[len(batch) // 2 :])

    def _predict_once(self, batch: list[Item]) -> dict[str, Any] | None:
        """Set the outputs of a batch; return the reject columns if the model fails."""
        image_ids = [item.reference["image_id"] for item in batch]
        needs_image = self.job.reconstruct or not self.task.stores_latent
        try:
            with self.watchdog.step("model", *image_ids) as restart, self.tally.time("model"):
                samples = [item.sample(needs_image, item.is_in_sample(self.job.quality), restart) for item in batch]
                outputs = self.objective.predict(self.model, samples, self.params, self.precision)
        except SampleError as e:
            return Rejected("model", e.error_class, str(e)).row
        except Exception as e:  # noqa: BLE001 - any error of one image must not fail the others
            if is_lost_device(e):
                log.critical("the GPU is no longer usable: %s. This worker ends and a new one replaces it", reason(e))
                os._exit(1)
            # torch raises RuntimeError when memory runs out and when the device fails: neither is the image's fault.
            return build_reject("model", e, isinstance(e, MemoryError | RuntimeError)).row
        for item, output in zip(batch, outputs, strict=True):
            item.output = output
        return None
