"""The bytes of an image by its reference: a file, a member of a shard, or a URL; checked against what the listing said."""

import hashlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from imagemill.models.type_checks import require_value
from imagemill.pipeline.sources.input import Input
from imagemill.pipeline.sources.shard_formats import shard_format
from imagemill.pipeline.sources.source import SHARD_CHANGED, ShardReader
from imagemill.pipeline.sources.web import AddressRefused, InvalidAddress, TooLarge, fetch, redact_secrets
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_failures import class_of, reason

MAX_FILE_BYTES = 1_000_000_000
SHARD_TRIES = 3
PERMANENT_ERRORS = {AddressRefused: "NotAllowed", InvalidAddress: "NoAddress", TooLarge: "TooManyBytes"}
"""Error classes of URLs that are not asked for again."""
Result = TypeVar("Result")


class ReadError(Exception):
    """An image that could not be read; a transient one is tried again by the next run."""

    def __init__(self, error_class: str, message: str, transient: bool = True) -> None:
        super().__init__(message)
        self.error_class, self.transient = error_class, transient


def check_size(size: int, what: str) -> None:
    """Raises: ReadError for more bytes than are read of an image or a mask."""
    if size > MAX_FILE_BYTES:
        message = f"{size / 1e6:.0f} MB are over the limit of {MAX_FILE_BYTES / 1e6:.0f} MB for a {what}"
        raise ReadError("TooManyBytes", message, transient=False)


class ImageReader:
    """Reads for one actor. Files are read by several threads; shards by one, in order, for they are read forward."""

    def __init__(self, source: Input, threads: int) -> None:
        self.source = source
        self._files = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._shards = ThreadPoolExecutor(1, thread_name_prefix="shard")
        self._open: tuple[str, ShardReader] | None = None
        self._changed: set[str] = set()
        """Shards of which a member was another one each time: a packed one is not unpacked anew for all that follow."""

    def submit(self, reference: dict[str, Any], fn: Callable[..., Result], *args: Any) -> Future[Result]:
        """fn(*args) on a thread that may read what `reference` names."""
        return (self._files if reference["offset"] is None else self._shards).submit(fn, *args)

    def read(self, reference: dict[str, Any]) -> tuple[bytes, bytes | None]:
        """The encoded image, and its mask where it has one, which may come first in a shard. Raises: ReadError."""
        place, mask_place = reference["offset"], reference["mask_offset"]
        if reference["mask_path"] and mask_place is not None and mask_place < (place or 0):
            mask = self._mask(reference)
            return self.image(reference), mask
        return self.image(reference), self._mask(reference) if reference["mask_path"] else None

    def image(self, reference: dict[str, Any]) -> bytes:
        """The encoded image. Raises: ReadError."""
        check_size(reference["size"], "file")
        if reference["offset"] is not None:
            digest = reference["source_etag"].split()[0]
            return self._member(reference["path"], reference["offset"], reference["size"], digest)
        data = self._file(reference["base"], reference["path"])
        if len(data) != reference["size"] and reference["size"] >= 0:
            message = f"{len(data)} bytes were read where the listing said {reference['size']}: it changed, or was cut off"
            raise ReadError("SizeChanged", message)
        return data

    def _mask(self, reference: dict[str, Any]) -> bytes:
        check_size(reference["mask_size"], "mask")
        if reference["mask_offset"] is None:
            return self._file(None, reference["mask_path"])
        digest = reference["source_etag"].split()[1]
        return self._member(reference["mask_path"], reference["mask_offset"], reference["mask_size"], digest)

    def _file(self, base: str | None, path: str) -> bytes:
        try:
            if base == "":
                return fetch(path, MAX_FILE_BYTES, public_only=self.source.config.http == "public")
            store = self.source.store if base is None else Store(base, self.source.store.config)
            return store.read(path)
        except FileNotFoundError:
            raise ReadError("FileNotFound", f"{redact_secrets(path)} was gone when it was read") from None
        except (AddressRefused, InvalidAddress, TooLarge) as e:
            raise ReadError(PERMANENT_ERRORS[type(e)], str(e), transient=False) from None
        except Exception as e:  # noqa: BLE001 - what a store's client may raise is open-ended; the image waits
            raise ReadError(class_of(e), reason(e)) from None

    def _member(self, path: str, offset: int, size: int, digest: str) -> bytes:
        """A member of a shard, by a digest of its bytes."""
        problem = ReadError(SHARD_CHANGED, "the shard is not what it was when it was listed")
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
