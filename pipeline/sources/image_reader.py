"""Read the bytes of an image from a file, a shard or a URL, and check them against the listing."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from imagemill.models.type_checks import require_value
from imagemill.pipeline.sources.addresses import redact_secrets
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.sources.shard_formats import shard_format
from imagemill.pipeline.sources.source import SHARD_CHANGED, ShardReader
from imagemill.pipeline.sources.web import AddressRefused, InvalidAddress, TooLarge, fetch
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
Result = TypeVar("Result")


class ReadError(Exception):
    """Raised for an image that cannot be read. If the cause is transient, the next run tries the image again."""

    def __init__(self, error_class: str, message: str, transient: bool = True) -> None:
        super().__init__(message)
        self.error_class, self.transient = error_class, transient


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
        threads: threads that read files.
    """

    def __init__(self, source: Input, threads: int) -> None:
        self.source = source
        self._files = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._shards = ThreadPoolExecutor(1, thread_name_prefix="shard")
        self._open: tuple[str, ShardReader] | None = None
        self._changed: set[str] = set()
        """Shards with a member that differed at each try. Their other members are tried once, because a packed shard is
        decompressed from its beginning for each new try."""

    def submit(self, reference: dict[str, Any], fn: Callable[..., Result], *args: Any) -> Future[Result]:
        """Call `fn(*args)` on a thread that may read the image of `reference`."""
        return (self._files if reference["offset"] is None else self._shards).submit(fn, *args)

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

    def _file(self, base: str | None, path: str) -> bytes:
        try:
            store = self._store(base)
            if store is None:
                return fetch(path, MAX_FILE_BYTES, public_only=self.source.config.http == "public")
            return store.read(path)
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
