"""A store: files by relative path in a folder or bucket prefix, written atomically."""

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

from imagemill.pipeline import disk
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.etags import etags_of
from imagemill.pipeline.storage_config import StorageConfig
from imagemill.pipeline.store_failures import (
    Answer,
    busy_pause,
    call_with_retries,
    check_length,
    content_md5,
    reason,
    refusal,
)
from imagemill.pipeline.store_listing import NOT_A_FILE, Entry, bucket_files, local_etag, local_files, without_markers

log = logging.getLogger("imagemill.storage")
SCHEMES = ("file", "s3")


def split_scheme(url: str) -> tuple[str, str]:
    """Return ("file" or "s3", path) of a URL or local path.

    Raises:
        ConfigError: when the scheme is unknown, or lacks its two slashes.
    """
    scheme, separator, path = url.partition("://")
    if not separator:
        name, colon, _ = url.partition(":")
        if colon and name.lower() in SCHEMES:
            raise ConfigError(f"{url}: write {name.lower()}://, or ./{url} for a local folder of this name")
        return "file", os.path.abspath(os.path.expanduser(url))
    if scheme == "hf":
        name = path.removeprefix("datasets/").partition("@")[0] or "OWNER/NAME"
        raise ConfigError(
            f"{url}: data sets are read from a folder. Run `hf download {name} --repo-type dataset --local-dir FOLDER` "
            "(pip install huggingface_hub) and give FOLDER"
        )
    if scheme not in SCHEMES:
        raise ConfigError(f"{url}: scheme {scheme!r} is not supported. Valid: {', '.join(SCHEMES)}")
    return scheme, os.path.abspath(path) if scheme == "file" else path.strip("/")


class Store:
    """A folder or `s3://bucket/prefix`; paths are relative to this root. Pickled by its two arguments.

    Args:
        url: folder, `file://` or `s3://` URL.
        config: how to reach S3.

    Raises:
        ConfigError: when the URL or the endpoint is malformed.
    """

    def __init__(self, url: str, config: StorageConfig | None = None) -> None:
        self.config = config or StorageConfig()
        self.scheme, self.root = split_scheme(url)
        self.url = self.root if self.scheme == "file" else f"s3://{self.root}"
        if self.scheme == "s3" and not self.root:
            raise ConfigError(f"{url}: the bucket is missing. Write s3://bucket/prefix")
        if not self.local and self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"storage.endpoint_url={self.endpoint}: must begin with http:// or https://")

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url, self.config)

    @property
    def local(self) -> bool:
        """Whether the store is a local folder."""
        return self.scheme == "file"

    @property
    def endpoint(self) -> str | None:
        """The S3 endpoint of the config or the environment; None for AWS."""
        return self.config.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")

    @cached_property
    def fs(self) -> Any:
        """The fsspec file system of a bucket. A local store does without, because fsspec takes long to import."""
        import fsspec

        fs = fsspec.filesystem("s3", **self.config.options())
        # Registered before botocore's own handler: the first handler that returns a wait decides.
        fs.s3.meta.events.register_first("needs-retry.s3", busy_pause, unique_id="imagemill-busy")
        return fs

    def lies_in(self, other: "Store") -> bool:
        """Return whether this store is `other` or lies below `other`, with links followed."""
        inner, outer = (os.path.realpath(store.root) if store.local else store.root for store in (self, other))
        return self.scheme == other.scheme and os.path.join(inner, "").startswith(os.path.join(outer, ""))

    def full(self, path: str) -> str:
        """Return the path as the fsspec file system expects it."""
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def uri(self, path: str) -> str:
        """Return the URI by which rows name an object."""
        return self.full(path) if self.local else f"s3://{self.full(path)}"

    def relative(self, full: str) -> str:
        """Return the path relative to the root; the inverse of `full`."""
        return full[len(self.root.rstrip("/")) + 1 :]

    def exists(self, path: str = "") -> bool:
        """Return whether an object or folder exists; on S3, also whether any object lies below the name.

        Raises:
            OSError: or another exception of `store_failures`, when the store fails.
        """
        full = self.full(path)
        if self.local:
            return os.path.exists(full)
        if "/" in full:
            return bool(self.ask(lambda: self.fs.exists(full)))
        try:
            # s3fs.exists returns False for a bucket on any error.
            self.ask(lambda: self.fs.call_s3("list_objects_v2", Bucket=full, MaxKeys=1))
        except FileNotFoundError:
            return False
        return True

    def ask(self, request: Callable[[], Answer], damage: tuple[type[Exception], ...] = ()) -> Answer:
        """Return the answer to a request, with retries on S3.

        Args:
            request: the call.
            damage: exceptions that mean that bytes were damaged in transit, so that a retry may help.
        """
        return request() if self.local else call_with_retries(request, damage)

    def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        """Call a method of the S3 API for one object."""
        bucket, _, key = self.full(path).partition("/")
        answer: dict[str, Any] = self.fs.call_s3(method, Bucket=bucket, Key=key, **arguments)
        return answer

    def entries(self, path: str = "", skips: Callable[[str], bool] | None = None) -> Iterator[Entry]:
        """Yield every object below `path`; yield nothing if the folder does not exist.

        Args:
            path: folder.
            skips: decides by the path below `path` whether a folder is skipped. If given, each skipped folder, and each
                local folder that cannot be read, is one entry (store_listing.folder_entry).

        Raises:
            StorageError: when the store cannot be listed, or the bucket does not exist.
        """
        if self.local:
            yield from local_files(self.full(path), self.root, skips)
            return
        try:
            yield from without_markers(bucket_files(self.full(path), self.root, self._ls, self._find, skips))
        except FileNotFoundError as e:
            if refusal(e)[1] == "NoSuchBucket":
                bucket = self.root.partition("/")[0]
                raise StorageError(f"{self.url}: the bucket {bucket} does not exist. Create it, or check the name") from None
            return
        except Exception as e:
            raise StorageError(f"{self.uri(path)}: cannot be listed: {reason(e)}") from e

    def _ls(self, folder: str) -> list[dict[str, Any]]:
        """Return what lies directly in a folder of a bucket, as s3fs describes it."""
        infos: list[dict[str, Any]] = self.ask(lambda: self.fs.ls(folder, detail=True))
        return infos

    def _find(self, folder: str) -> list[dict[str, Any]]:
        """Return all objects below a folder of a bucket, as s3fs describes them."""
        return list(self.ask(lambda: self.fs.find(folder, detail=True)).values())

    def names(self, path: str) -> list[str]:
        """Return the names of the files and folders directly in a folder; an empty list if the folder does not exist.

        Raises:
            OSError: or another exception of `store_failures`, when the store fails.
        """
        try:
            if self.local:
                return os.listdir(self.full(path))
            return [str(full).rpartition("/")[2] for full in self.ask(lambda: self.fs.ls(self.full(path), detail=False))]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def has_files(self, path: str) -> bool:
        """Return whether a file of this name, or below a folder of this name, exists.

        Raises:
            StorageError: when the store cannot be listed.
        """
        if self.local and os.path.lexists(self.full(path)) and not os.path.isdir(self.full(path)):
            return True
        return next(self.entries(path), None) is not None

    def entry(self, path: str) -> Entry:
        """Return the entry of one object. On S3, an empty object with other objects below its name is a folder.

        Raises:
            FileNotFoundError: when no object has this path.
            IsADirectoryError: when the path is a folder.
            OSError: for a special file; or another exception of `store_failures`, when the store fails.
        """
        if self.local:
            status = os.stat(self.full(path))
            if stat.S_ISDIR(status.st_mode):
                raise IsADirectoryError(errno.EISDIR, "a folder, not a file", self.uri(path))
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, NOT_A_FILE, self.uri(path))
            return Entry(path, status.st_size, local_etag(status))
        info = self.ask(lambda: self.fs.info(self.full(path)))
        if info["type"] == "directory" or (not info["size"] and self.is_prefix(path)):
            raise IsADirectoryError(errno.EISDIR, "a folder, not a file", self.uri(path))
        return Entry(path, int(info["size"]), info["ETag"].strip('"'))

    def age(self, path: str) -> float:
        """Return the seconds since an object was written, by the store's clock; negative if that clock was set back.

        Raises:
            FileNotFoundError: when the object does not exist.
            OSError: or BotoCoreError, when the store fails.
        """
        if not self.local:
            answer = self.ask(lambda: self._call("head_object", path))
            date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            now = parsedate_to_datetime(date) if date else datetime.now(UTC)
            return float((now - answer["LastModified"]).total_seconds())
        return disk.age(Path(self.full(path)))

    def written_at(self, path: str) -> float:
        """Return the time at which an object was written, in seconds; compare it only with times of the same store.

        The difference of two ages depends on the time between the two requests, the difference of two times does not.

        Raises:
            FileNotFoundError: when the object does not exist.
            OSError: or BotoCoreError, when the store fails.
        """
        if self.local:
            return os.stat(self.full(path)).st_mtime
        return float(self.ask(lambda: self._call("head_object", path))["LastModified"].timestamp())

    def is_prefix(self, path: str) -> bool:
        """Return whether any object lies below a name on S3; an object may have the name as well.

        Raises:
            OSError: or another exception of `store_failures`, when the store fails.
        """
        bucket, _, key = self.full(path).partition("/")
        request = partial(self.fs.call_s3, "list_objects_v2", Bucket=bucket, Prefix=f"{key}/", MaxKeys=1)
        return bool(self.ask(request).get("Contents"))

    def read(self, path: str) -> bytes:
        """Return a whole object. On S3, check its length and, if its etag is an MD5, its digest.

        Raises:
            FileNotFoundError: when the object does not exist.
            OSError: or BotoCoreError, when the store fails.
        """
        if self.local:
            # Opening a pipe would block, so the kind of the file is checked first.
            self.entry(path)
            return Path(self.full(path)).read_bytes()

        bucket = f"s3://{self.root.partition('/')[0]}"
        etags = etags_of(f"{bucket} at {self.endpoint}" if self.endpoint else bucket)
        earlier: set[str] = set()

        def get() -> bytes:
            answer = self._call("get_object", path)
            data = self._body(answer)
            check_length(self.uri(path), data, answer)
            etags.check(self.uri(path), data, answer, earlier)
            return data

        return call_with_retries(get)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """Return exactly `length` bytes of an object from `start` on.

        Raises:
            FileNotFoundError: when the object does not exist.
            OSError: when the object is too short.
            OSError: or BotoCoreError, when the store fails.
        """
        if not length:
            return b""

        def get() -> bytes:
            answer = self._call("get_object", path, Range=f"bytes={start}-{start + length - 1}")
            data = self._body(answer)
            check_length(self.uri(path), data, answer)
            return data

        if self.local:
            with Path(self.full(path)).open("rb") as f:
                f.seek(start)
                data = f.read(length)
        else:
            data = call_with_retries(get)
        if len(data) != length:
            raise OSError(errno.EIO, f"the file ends before {length} bytes from {start} on", self.uri(path))
        return data

    def open(self, path: str, block_bytes: int | None = None) -> BinaryIO:
        """Open an object for reading.

        Args:
            path: the object.
            block_bytes: bytes that are fetched from S3 at a time; None for the client's default.

        Raises:
            FileNotFoundError: when the object does not exist.
            OSError: or BotoCoreError, when the store fails.
        """
        if self.local:
            return Path(self.full(path)).open("rb")
        file: BinaryIO = self.fs.open(self.full(path), "rb", **({"block_size": block_bytes} if block_bytes else {}))
        return file

    def _body(self, answer: dict[str, Any]) -> bytes:
        """Return the body of a response of get_object."""
        from fsspec.asyn import sync as wait_for

        async def drain() -> bytes:
            async with answer["Body"] as stream:
                data: bytes = await stream.read()
                return data

        body: bytes = wait_for(self.fs.loop, drain)
        return body

    def write(self, path: str, data: bytes, durable: bool = False) -> None:
        """Write an object atomically: on S3 one PUT (up to 5 GB) with an MD5, on a disk a temporary file and a rename.

        Args:
            path: where to write.
            data: the content.
            durable: on a disk, wait until the file is stored, not only cached.
        """
        if not self.local:
            call_with_retries(lambda: self._call("put_object", path, Body=data, ContentMD5=content_md5(data)))
            return
        disk.write(Path(self.full(path)), data, durable)

    def create(self, path: str, data: bytes) -> bool:
        """Write an object only if no object has this path (If-None-Match on S3); return False if one has."""
        if not self.local:
            condition = {"IfNoneMatch": "*", "ContentMD5": content_md5(data)}
            try:
                call_with_retries(lambda: self._call("put_object", path, Body=data, **condition))
                return True
            except OSError as e:
                if refusal(e)[0] != 412:
                    raise
                # If the answer to an earlier attempt was lost, the object has the same content.
                return self.read(path) == data
        return disk.create(Path(self.full(path)), data)

    def folds_case(self) -> bool:
        """Return whether names that differ only in case name one file, as on exFAT and most disks of macOS."""
        return self.local and disk.folds_case(Path(self.root))

    def delete(self, path: str) -> None:
        """Delete an object.

        Raises:
            FileNotFoundError: when a local file does not exist. S3 does not report that an object does not exist.
        """
        if self.local:
            os.remove(self.full(path))
        else:
            self.ask(lambda: self.fs.rm_file(self.full(path)))

    def sweep(self, spare: str) -> None:
        """Remove the temporary files that killed writers left on a local disk, except in the folder `spare`.

        Call this method only while no one else writes to the store: it removes the temporary files of live writers too.
        """
        if self.local:
            disk.sweep(self.root, self.full(spare))
