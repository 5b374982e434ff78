"""The actor: references in, rows out. Threads fetch and decode; batches of one padded size; threads finish (finish.py)."""

import hashlib
import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from imagemill.models.batches import padded_size
from imagemill.models.objectives import TASK_OBJECTIVES
from imagemill.models.precision import Precision, select_dtype
from imagemill.models.tasks import TASKS
from imagemill.models.tasks.task import Params, SampleError
from imagemill.models.tiling import is_lost_device
from imagemill.pipeline.cluster.suspects import TRIED_BY_RUNS, Suspects
from imagemill.pipeline.cluster.tally import Tally
from imagemill.pipeline.images.decode import decode_image, read_pixel_count
from imagemill.pipeline.images.errors import DAMAGED_IMAGE, ImageError
from imagemill.pipeline.images.masks import decode_mask
from imagemill.pipeline.item import Item, Rejected, unexpected
from imagemill.pipeline.logs import configure_worker
from imagemill.pipeline.output.stored_checkpoint import load_stored_model
from imagemill.pipeline.output.style_images import load_style_images
from imagemill.pipeline.row_builder import RowBuilder
from imagemill.pipeline.schema import LATENT_KEPT, row_schema
from imagemill.pipeline.sources.image_reader import ImageReader, ReadError
from imagemill.pipeline.sources.source import UNREADABLE_SHARD
from imagemill.pipeline.store_failures import reason
from imagemill.pipeline.worker_job import WorkerJob

log = logging.getLogger("imagemill.run")
KEEP_DAMAGED = " Or keep the image as it is with --accept-damaged."
"""The other way out for the image itself; masks, styles and training images have to be whole."""
# Decoded pixels that wait for a batch of their size, before the largest group is run as it is.
HELD_PIXELS = 64_000_000
MODEL_PIXELS = {"cpu": 2_000_000, "cuda": 64_000_000}
ROWS_BYTES = 64_000_000
"""Of latents in rows that wait for the end of their block: more are a part of their own."""
PIXELS_AT_ONCE = {"cpu": 48_000_000, "cuda": 1_000_000_000}
"""Of images that are decoded and not yet written, unless it is one alone: what bounds an actor's memory."""


class BlockProcessor:
    """What an actor does: `__call__` takes a block of references (schema.REFERENCE) and yields tables of rows.

    Never raises for one image: whatever goes wrong with it becomes a row with `stage` set. An OUTPUT that takes nothing more
    is a StorageError.
    """

    def __init__(self, job: WorkerJob) -> None:
        self.job = job
        self.task, self.objective = TASKS[job.task], TASK_OBJECTIVES[job.task]
        self.params: Params = self.task.Params(**job.params)
        self.schema = row_schema(self.task.columns, self.task.stores_latent)
        device = "cuda" if job.gpus and torch.cuda.is_available() else "cpu"
        if device == "cpu":
            torch.set_num_threads(job.torch_threads)
        elif job.gpus < 1:
            # Or what torch keeps for one worker is missing to the others on its GPU.
            torch.cuda.set_per_process_memory_fraction(job.gpus)
        self.model_pixels = MODEL_PIXELS[device] if device == "cpu" else int(job.gpus * MODEL_PIXELS[device])
        self.precision = Precision(device, select_dtype(device, job.dtype))
        model = load_stored_model(job.output, job.checkpoint_sha256, device)
        style_images = load_style_images(job.output, job.style_images, job.max_pixels)
        self.model = self.objective.prepare(model, self.params, style_images, device)
        # Room is that of what comes out, where that is larger than what went in.
        self.made_of_one = self.model.scale**2
        self.threads = ThreadPoolExecutor(job.threads, thread_name_prefix="image")
        self.reading = ImageReader(job.source, job.threads)
        self.tally = Tally(job.task, job.lineage["run_id"])
        configure_worker(job.lineage["run_id"])
        self.finish = RowBuilder(job, self.task, self.tally)
        self.tally.ready(device, job.gpus > 0)

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """The rows of a block (schema.row_schema) in its order; in several tables where they take much memory."""
        references = block.to_pylist()
        suspects = Suspects(self.job.lineage["run_id"], [r["image_id"] for r in references])
        finished = self._one_by_one(references, suspects) if suspects.deaths else self._finished(references)
        rows: dict[str, dict[str, Any]] = {}
        held = 0
        for item in finished:
            rows[item.reference["image_id"]] = item.row
            held += sum(len(item.row[name]) for name in LATENT_KEPT if name in item.row)
            if held > ROWS_BYTES:
                yield self._table(references, rows)
                rows, held = {}, 0
        suspects.clear()
        yield self._table(references, rows)

    def _table(self, references: list[dict[str, Any]], rows: dict[str, dict[str, Any]]) -> pa.Table:
        return pa.Table.from_pylist([rows[key] for r in references if (key := r["image_id"]) in rows], self.schema)

    def _one_by_one(self, references: list[dict[str, Any]], suspects: "Suspects") -> Iterator[Item]:
        """After a process died in this block: each image alone, so that the next death says whose it was."""
        for reference in references:
            if suspects.accused(reference["image_id"]):
                message = "its process died twice while it alone was in work (a crash of a decoder, or out of memory)"
                again = reference["attempts"] + 1 < TRIED_BY_RUNS
                yield self.finish(Item(reference, error=Rejected("process", "KilledProcess", message, again).row))
                continue
            suspects.name(reference["image_id"])
            yield from self._finished([reference])

    def _finished(self, references: list[dict[str, Any]]) -> Iterator[Item]:
        """Items with their rows."""
        writing: deque[Future[Item]] = deque()
        for batch in self._batches(references):
            if batch and batch[0].error is None:
                self._run(batch)
            writing.extend(self.threads.submit(self.finish, item) for item in batch)
            # An empty batch asks for room: a large image is to be decoded.
            while len(writing) > (4 * self.job.threads + self.job.batch_size if batch else 0):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()

    def _batches(self, references: list[dict[str, Any]]) -> Iterator[list[Item]]:
        """Items of one padded size together; rejects alone; an empty one where nothing else may be held any more."""
        waiting: dict[tuple[int, int], list[Item]] = {}
        held = 0
        for item in self._decoded(references):
            if item is None:
                yield from waiting.values()
                waiting, held = {}, 0
                yield []
                continue
            if item.picture is None or item.error:
                yield [item]
                continue
            size = padded_size(item.picture.rgb, self.model.stride)
            pixels = size[0] * size[1] * self.made_of_one
            waiting.setdefault(size, []).append(item)
            held += pixels
            most = self.model_pixels // pixels
            if len(waiting[size]) >= min(self.job.batch_size, max(1, most)):
                held -= pixels * len(waiting[size])
                yield waiting.pop(size)
            while held > HELD_PIXELS:
                largest = max(waiting, key=lambda s: s[0] * s[1] * len(waiting[s]))
                held -= largest[0] * largest[1] * self.made_of_one * len(waiting[largest])
                yield waiting.pop(largest)
        yield from waiting.values()

    def _decoded(self, references: list[dict[str, Any]]) -> Iterator[Item | None]:
        """Fetched and decoded in order, a few images ahead of the model; None around one that needs all the room."""
        ahead: deque[Future[Item]] = deque()
        for item in self._fetched(references):
            if item.pixels * self.made_of_one > PIXELS_AT_ONCE[self.precision.device] // (2 * self.job.threads):
                while ahead:
                    yield ahead.popleft().result()
                yield None
                yield self._decode(item)
                yield None
                continue
            ahead.append(self.threads.submit(self._decode, item))
            if len(ahead) > 2 * self.job.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _fetched(self, references: list[dict[str, Any]]) -> Iterator[Item]:
        """Encoded images in order, a few ahead."""
        ahead: deque[Future[Item]] = deque()
        for reference in references:
            ahead.append(self.reading.submit(reference, self._read, reference))
            if len(ahead) > 2 * self.job.threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _read(self, reference: dict[str, Any]) -> Item:
        item = Item(reference)
        try:
            if reference["problem"]:
                error_class, _, message = reference["problem"].partition(": ")
                raise Rejected("list", error_class, message, transient=error_class == UNREADABLE_SHARD)
            with self.tally.time("fetch"):
                item.data, item.mask_data = self.reading.read(reference)
            self.tally.add(bytes_in=len(item.data))
            item.content_sha256 = hashlib.sha256(item.data).hexdigest()
            item.pixels = read_pixel_count(item.data)
        except Rejected as e:
            item.error = e.row
        except ReadError as e:
            item.error = Rejected("fetch", e.error_class, str(e), e.transient).row
        except Exception as e:  # noqa: BLE001 - whatever it is, it is this image's alone
            item.error = unexpected("fetch", e, isinstance(e, MemoryError)).row
        return item

    def _decode(self, item: Item) -> Item:
        if item.error:
            return item
        try:
            with self.tally.time("decode"):
                item.picture = decode_image(item.taken(), self.job.max_pixels, self.job.image, self.job.accept_damaged)
                item.mask = self._mask(item.mask_data) if item.mask_data is not None else None
        except Rejected as e:
            item.error = e.row
        except ImageError as e:
            choice = KEEP_DAMAGED if e.error_class == DAMAGED_IMAGE else ""
            item.error = Rejected("decode", e.error_class, f"{e}{choice}").row
        except Exception as e:  # noqa: BLE001 - as in _read
            item.error = unexpected("decode", e, isinstance(e, MemoryError)).row
        item.mask_data = None
        return item

    def _mask(self, data: bytes) -> np.ndarray:
        """(H,W) uint8 of a mask file: 255 where the image is missing, else 0."""
        try:
            return decode_mask(data, self.job.max_pixels)
        except ImageError as e:
            raise Rejected("decode", f"Mask{e.error_class}", f"the mask: {e}") from None

    def _run(self, batch: list[Item]) -> None:
        """Run the model over a batch; if that fails, over its halves, down to the image that fails alone."""
        error = self._predict(batch)
        if error is None:
            return
        if len(batch) == 1:
            batch[0].error = error
            return
        # Halves, so that what did not fit into memory together goes on in batches as large as may be. Here no exception is
        # handled, whose traceback would keep the memory of the whole batch.
        self._run(batch[: len(batch) // 2])
        self._run(batch[len(batch) // 2 :])

    def _predict(self, batch: list[Item]) -> dict[str, Any] | None:
        """Give the items of a batch their outputs; where that fails return the row of a reject."""
        needs_image = self.job.reconstruct or not self.task.stores_latent
        samples = [item.sample(needs_image, item.among(self.job.quality)) for item in batch]
        try:
            with self.tally.time("model"):
                outputs = self.objective.predict(self.model, samples, self.params, self.precision)
        except SampleError as e:
            return Rejected("model", e.error_class, str(e)).row
        except Exception as e:  # noqa: BLE001 - as in _read
            if is_lost_device(e):
                log.critical(
                    "the GPU can no longer be used: %s. The process ends, so that another takes its place", reason(e)
                )
                os._exit(1)
            # torch says RuntimeError for want of memory and for a sick device, neither of which is the image's fault.
            return unexpected("model", e, isinstance(e, MemoryError | RuntimeError)).row
        for item, output in zip(batch, outputs, strict=True):
            item.row["output"] = output
        return None
