"""Read the bytes of an image from a file, a shard or a URL, and check them against the listing."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from imagemill.models.type_checks import require_value
from imagemill.pipeline.lookahead import map_ahead
from imagemill.pipeline.pauses import Refusals, host_of
from imagemill.pipeline.sources import manifest
from imagemill.pipeline.sources.addresses import redact_secrets
from imagemill.pipeline.sources.byte_budget import FETCHED_BYTES, ByteBudget
from imagemill.pipeline.sources.host_queue import HostBusy, HostQueue
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.sources.resolver import AddressRefused
from imagemill.pipeline.sources.shard_formats import shard_format
from imagemill.pipeline.sources.source import SHARD_CHANGED, ShardReader
from imagemill.pipeline.sources.web import InvalidAddress, TooLarge, fetch, request
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import class_of, reason

MAX_FILE_BYTES = 1_000_000_000
SHARD_TRIES = 3
"""Reads of a shard member whose bytes differ from the listing, before the image is rejected."""
RETRY_SECONDS = 1800.0
"""Seconds that reading one image may take longer than another stage. The clients of a bucket ask a silent server 100 times
and wait 15 s each time, a web server may be busy and then slow, and a packed shard is read from its beginning."""
PERMANENT_ERRORS = {AddressRefused: "NotAllowed", InvalidAddress: "NoAddress", TooLarge: "TooManyBytes"}
"""Error classes of URLs that are not fetched again."""
WEB_THREADS, BUCKET_THREADS = 32, 16
"""Default number of threads of a worker that fetch URLs, or objects of a bucket. They mostly wait for the network."""
Result = TypeVar("Result")
Reference = dict[str, Any]
"""A row of the plan (schema.REFERENCE)."""
Read = Callable[[Callable[[], None]], tuple[bytes, bytes | None]]
"""Reads the image and mask of a reference; calls its argument from time to time while it waits for memory."""


def default_fetch_threads(source: Input, threads: int) -> int:
    """Return how many threads of a worker fetch images.

    Args:
        source: the input.
        threads: threads that decode. As many read a local disk, which answers at once.
    """
    if source.file and manifest.is_manifest(source.file):
        return WEB_THREADS if source.config.http != "refuse" else BUCKET_THREADS
    return threads if source.store.local else BUCKET_THREADS


class ReadError(Exception):
    """Raised for an image that cannot be read. If the cause is transient, the next run tries the image again."""

    def __init__(self, error_class: str, message: str, transient: bool = True) -> None:
        super().__init__(message)
        self.error_class, self.transient = error_class, transient


def encoded_bytes(reference: Reference) -> int:
    """Return the listed bytes of an image and its mask; 0 for an image that is not read."""
    return 0 if reference["problem"] else max(0, reference["size"]) + (reference["mask_size"] or 0)


def check_size(size: int, what: str) -> None:
    """Raise ReadError if a file or mask has more bytes than MAX_FILE_BYTES."""
    if size > MAX_FILE_BYTES:
        message = f"{size / 1e6:.0f} MB are over the limit of {MAX_FILE_BYTES / 1e6:.0f} MB for a {what}"
        raise ReadError("TooManyBytes", message, transient=False)


class ImageReader:
    """Reads images for one worker.

    Several threads read files. One thread reads shards, in order, because packed shards can only be read forward.

    Args:
        source: the input.
        threads: threads that read files and URLs.
    """

    def __init__(self, source: Input, threads: int) -> None:
        self.source, self.threads = source, threads
        self._files = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._shards = ThreadPoolExecutor(1, thread_name_prefix="shard")
        self._open: tuple[str, ShardReader] | None = None
        self._changed: set[str] = set()
        """Shards with a member that differed at each try. Their other members are tried once, because a packed shard is
        decompressed from its beginning for each new try."""

    def submit(self, reference: dict[str, Any], fn: Callable[..., Result], *args: Any) -> Future[Result]:
        """Call `fn(*args)` on a thread that may read the image of `reference`."""
        return (self._files if reference["offset"] is None else self._shards).submit(fn, *args)

    def read_ahead(
        self, references: list[Reference], fetch: Callable[[Reference, Read], Result], per_host: int
    ) -> Iterator[Result]:
        """Yield `fetch(reference, read)` of each reference, and call it on threads, ahead of the consumer.

        Files and members of shards come first, in their order, then images from URLs in the order in which they arrive. The
        encoded images that were read ahead take at most FETCHED_BYTES, or are one larger image.

        Args:
            references: the images of a block.
            fetch: calls `read` for the image and mask; must let HostBusy pass.
            per_host: maximum number of requests at once to one web server.
        """
        urls = [reference for reference in references if reference["base"] == "" and not reference["problem"]]
        files = [reference for reference in references if reference["base"] != "" or reference["problem"]]

        def submit(reference: Reference) -> Future[Result]:
            return self.submit(reference, fetch, reference, lambda _: self.read(reference))

        yield from map_ahead(submit, files, 2 * self.threads, encoded_bytes, FETCHED_BYTES)
        budget = ByteBudget(FETCHED_BYTES)

        def fetch_url(reference: Reference, refusals: Refusals) -> tuple[Result, int]:
            taken = 0

            def read(report_progress: Callable[[], None]) -> tuple[bytes, None]:
                nonlocal taken
                with budget.fetch(report_progress) as take_bytes:
                    data = self.read_url(reference["path"], refusals, take_bytes)
                taken = len(data)
                return data, None

            return fetch(reference, read), taken

        def url_host(reference: Reference) -> str:
            return host_of(reference["path"])

        queue = HostQueue(urls, url_host, fetch_url, self._files, self.threads, per_host, lambda: budget.has_room)
        for result, taken in queue:
            budget.release(taken)
            yield result

    def retry_seconds(self, reference: dict[str, Any]) -> float:
        """Return how much longer than another stage `read` may take: 0 for files on a disk, else RETRY_SECONDS."""
        in_shard = reference["offset"] is not None or reference["mask_offset"] is not None
        store = self._store(reference["base"])
        return 0.0 if store and store.local and not in_shard else RETRY_SECONDS

    def read(self, reference: dict[str, Any]) -> tuple[bytes, bytes | None]:
        """Return the encoded image and its encoded mask, if it has one.

        Raises:
            ReadError: when one of them cannot be read.
        """
        offset, mask_offset = reference["offset"], reference["mask_offset"]
        # Shards are read forward, so whichever comes first in the shard is read first.
        if reference["mask_path"] and mask_offset is not None and mask_offset < (offset or 0):
            mask = self._mask(reference)
            return self.image(reference), mask
        return self.image(reference), self._mask(reference) if reference["mask_path"] else None

    def image(self, reference: dict[str, Any]) -> bytes:
        """Return the encoded image.

        Raises:
            ReadError: when the image cannot be read, is too large, or changed since it was listed.
        """
        check_size(reference["size"], "file")
        if reference["offset"] is not None:
            digest = reference["source_etag"].split()[0]
            return self._member(reference["path"], reference["offset"], reference["size"], digest)
        data = self._file(reference["base"], reference["path"])
        if len(data) != reference["size"] and reference["size"] >= 0:
            message = f"read {len(data)} bytes, but the listing has {reference['size']}: the file changed or was cut off"
            raise ReadError("SizeChanged", message)
        return data

    def _mask(self, reference: dict[str, Any]) -> bytes:
        check_size(reference["mask_size"], "mask")
        if reference["mask_offset"] is None:
            return self._file(None, reference["mask_path"])
        digest = reference["source_etag"].split()[1]
        return self._member(reference["mask_path"], reference["mask_offset"], reference["mask_size"], digest)

    def _store(self, base: str | None) -> Store | None:
        """Return the store of a file; None for a file that is a URL."""
        if base is None:
            return self.source.store
        return Store(base, self.source.store.config) if base else None

    def read_url(self, url: str, refusals: Refusals, take_bytes: Callable[[int], None]) -> bytes:
        """Return the image at a URL, by one request.

        Args:
            url: an http(s) URL.
            refusals: the earlier refusals of this request by a busy server. A further one is added.
            take_bytes: called with the number of bytes of each chunk, before the next one is read.

        Raises:
            HostBusy: when the server is busy and may be asked again.
            ReadError: when the image cannot be read.
        """
        with self._read_errors(url):
            return request(url, MAX_FILE_BYTES, self.source.config.http == "public", refusals, take_bytes)

    def _file(self, base: str | None, path: str) -> bytes:
        with self._read_errors(path):
            store = self._store(base)
            if store is None:
                return fetch(path, MAX_FILE_BYTES, public_only=self.source.config.http == "public")
            return store.read(path)

    @contextmanager
    def _read_errors(self, path: str) -> Iterator[None]:
        """Turn the errors of a `with` block that reads a file into a ReadError."""
        try:
            yield
        except (HostBusy, ReadError):
            raise
        except FileNotFoundError:
            raise ReadError("FileNotFound", f"{redact_secrets(path)} no longer exists") from None
        except (AddressRefused, InvalidAddress, TooLarge) as e:
            raise ReadError(PERMANENT_ERRORS[type(e)], str(e), transient=False) from None
        except Exception as e:  # noqa: BLE001 - a store's client may raise anything; the image is rejected
            raise ReadError(class_of(e), reason(e)) from None

    def _member(self, path: str, offset: int, size: int, digest: str) -> bytes:
        """Return a member of a shard whose bytes have a known digest.

        Raises:
            ReadError: when the shard cannot be read or changed since it was listed.
        """
        problem = ReadError(SHARD_CHANGED, "the shard changed since it was listed")
        for _ in range(1 if path in self._changed else SHARD_TRIES):
            try:
                if self._open is None or self._open[0] != path:
                    form = require_value(shard_format(path), "the format of the shard")
                    self._open = path, form.reader(self.source.store, path, self.source.config)
                data = self._open[1].read(offset, size)
            except Exception as e:  # noqa: BLE001 - as in _file
                problem, self._open = ReadError(class_of(e), reason(e)), None
                continue
            if hashlib.blake2b(data, digest_size=16).hexdigest() == digest:
                return data
            if path not in self._changed:
                self._open = None
        if problem.error_class == SHARD_CHANGED:
            self._changed.add(path)
        raise problem
