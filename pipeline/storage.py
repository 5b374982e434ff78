"""Bytes by relative path in a folder or a bucket prefix, by fsspec; a write appears at once or not at all."""

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import sync as wait_for
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, Field

from imagemill.pipeline import disk
from imagemill.pipeline.errors import ConfigError, StorageError
from imagemill.pipeline.etags import etags_of
from imagemill.pipeline.store_failures import Answer, busy_pause, check_length, content_md5, patiently, reason, refusal
from imagemill.pipeline.store_listing import NOT_A_FILE, Entry, local_etag, local_files, without_markers

log = logging.getLogger("imagemill.storage")
SCHEMES = ("file", "s3")
CHECKSUMS = ("request_checksum_calculation", "response_checksum_validation")
FOLDERS_AT_ONCE = 16


class StorageConfig(BaseModel):
    """How to reach S3. Keys and secrets are not allowed here: they come from the environment or a profile."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    endpoint_url: str | None = Field(None, description="Use this S3 endpoint. Default: AWS_ENDPOINT_URL.")
    profile: str | None = Field(None, description="Use this AWS profile. Default: AWS_PROFILE.")
    region: str | None = Field(None, description="Use this AWS region. Default: AWS_DEFAULT_REGION.")
    anonymous: bool = Field(False, description="Read a public bucket without credentials.")

    def options(self) -> dict[str, Any]:
        """Arguments of s3fs.S3FileSystem."""
        client = {"endpoint_url": self.endpoint_url, "region_name": self.region}
        # Bytes are checked here, by their MD5 (store_failures). Of clients' own checksums some servers refuse what is sent
        # and answer a part of an object with the sum of all of it.
        asked = {name: os.environ.get(f"AWS_{name.upper()}", "when_required") for name in CHECKSUMS}
        return {
            "anon": self.anonymous,
            "profile": self.profile,
            "client_kwargs": {k: v for k, v in client.items() if v},
            "config_kwargs": {"max_pool_connections": 64, **asked},
            "use_listings_cache": False,
        }

    def options_for(self, url: str) -> dict[str, Any]:
        """Arguments with which fsspec opens a URL or a local path."""
        return self.options() if url.startswith("s3://") else {}


def split_scheme(url: str) -> tuple[str, str]:
    """("file" | "s3", path) of a URL or a local path.

    Raises: ConfigError for any other scheme, and for one without its two slashes.
    """
    scheme, separator, path = url.partition("://")
    if not separator:
        name, colon, _ = url.partition(":")
        if colon and name.lower() in SCHEMES:
            raise ConfigError(f"{url}: {name.lower()}:// is expected; a local folder of this name is ./{url}")
        return "file", os.path.abspath(os.path.expanduser(url))
    if scheme not in SCHEMES:
        raise ConfigError(f"{url}: scheme {scheme!r} is not one of {', '.join(SCHEMES)}")
    return scheme, os.path.abspath(path) if scheme == "file" else path.strip("/")


def found_in_bucket(store: "Store", root: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object below a prefix; the folders directly in it are listed side by side, as each page takes a round trip."""
    here = store.ask(lambda: store.fs.ls(root, detail=True))
    folders = [info["name"] for info in here if info["type"] == "directory"]
    if any(folder.endswith("/") for folder in folders):
        # A folder without a name (`a//b.jpg`): s3fs would take its slash away, and list what is around it.
        yield from store.ask(lambda: store.fs.find(root, detail=True)).items()
        return
    if len(folders) == 1 and len(here) == 1:
        yield from found_in_bucket(store, folders[0])
        return
    yield from ((info["name"], info) for info in here)
    with ThreadPoolExecutor(FOLDERS_AT_ONCE) as pool:
        for found in pool.map(lambda folder: store.ask(lambda: store.fs.find(folder, detail=True)), folders):
            yield from found.items()


class Store:
    """A folder or `s3://bucket/prefix`. Paths are relative to it. Travels to Ray workers by its two arguments."""

    def __init__(self, url: str, config: StorageConfig | None = None) -> None:
        self.config = config or StorageConfig()
        self.scheme, self.root = split_scheme(url)
        self.url = self.root if self.scheme == "file" else f"s3://{self.root}"
        if self.scheme == "s3" and not self.root:
            raise ConfigError(f"{url}: a bucket is missing")
        if not self.local and self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ConfigError(f"the S3 endpoint {self.endpoint} must begin with http:// or https://")

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url, self.config)

    @property
    def local(self) -> bool:
        return self.scheme == "file"

    @property
    def endpoint(self) -> str | None:
        """Where S3 is, as the configuration or the environment says; None for AWS."""
        return self.config.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")

    @cached_property
    def fs(self) -> Any:
        if self.local:
            return LocalFileSystem()
        fs = fsspec.filesystem("s3", **self.config.options())
        # Before botocore's own handler: the first one that knows how long to wait decides.
        fs.s3.meta.events.register_first("needs-retry.s3", busy_pause, unique_id="imagemill-busy")
        return fs

    def lies_in(self, other: "Store") -> bool:
        """Whether this place is the other one or below it, links followed."""
        inner, outer = (os.path.realpath(store.root) if store.local else store.root for store in (self, other))
        return self.scheme == other.scheme and os.path.join(inner, "").startswith(os.path.join(outer, ""))

    def full(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def uri(self, path: str) -> str:
        """How a row names an object."""
        return self.full(path) if self.local else f"s3://{self.full(path)}"

    def relative(self, full: str) -> str:
        return full[len(self.root.rstrip("/")) + 1 :]

    def exists(self, path: str = "") -> bool:
        """Whether an object, a folder or, on S3, anything below that name is there.

        Raises: OSError, or what the store's client raises, for any other answer.
        """
        full = self.full(path)
        if self.local or "/" in full:
            return bool(self.ask(lambda: self.fs.exists(full)))
        try:
            # s3fs says of a bucket that it does not exist, whatever goes wrong.
            self.ask(lambda: self.fs.call_s3("list_objects_v2", Bucket=full, MaxKeys=1))
        except FileNotFoundError:
            return False
        return True

    def ask(self, request: Callable[[], Answer], damage: tuple[type[Exception], ...] = ()) -> Answer:
        """The answer to a request, asked again where that may help; a local disk is asked once.

        Args: damage: what shows a reader that the bytes were damaged on their way.
        """
        return request() if self.local else patiently(request, damage)

    def _call(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        """One call of S3's interface about one object."""
        bucket, _, key = self.full(path).partition("/")
        answer: dict[str, Any] = self.fs.call_s3(method, Bucket=bucket, Key=key, **more)
        return answer

    def entries(self, path: str = "", may_skip: Callable[[str], bool] | None = None) -> Iterator[Entry]:
        """Every object below `path`, of any name; none where no folder is.

        Args: may_skip: folders on a disk, by their path below `path`, that may be unreadable (local_files).

        Raises: StorageError when the store cannot be listed, or its bucket does not exist.
        """
        if self.local:
            yield from (replace(entry, path=self.relative(entry.path)) for entry in local_files(self.full(path), may_skip))
            return
        try:
            found = found_in_bucket(self, self.full(path))
            files = ((full, info) for full, info in found if info["type"] == "file" and not full.endswith("/"))
            yield from without_markers(
                Entry(self.relative(full), int(info["size"]), info["ETag"].strip('"')) for full, info in files
            )
        except FileNotFoundError as e:
            if refusal(e)[1] == "NoSuchBucket":
                bucket = self.root.partition("/")[0]
                raise StorageError(f"{self.url}: the bucket {bucket} does not exist: make it, or name another") from None
            return
        except Exception as e:
            raise StorageError(f"{self.uri(path)}: cannot be listed: {reason(e)}") from e

    def names(self, path: str) -> list[str]:
        """The names of what lies directly in a folder, files and folders; none where no folder is.

        Raises: OSError, or what the store's client raises.
        """
        try:
            return [str(full).rpartition("/")[2] for full in self.ask(lambda: self.fs.ls(self.full(path), detail=False))]
        except FileNotFoundError:
            return []

    def has_files(self, path: str) -> bool:
        """Whether there is a file of this name, or any below a folder of this name. Raises: as `entries`."""
        if self.local and os.path.lexists(self.full(path)) and not os.path.isdir(self.full(path)):
            return True
        return next(self.entries(path), None) is not None

    def entry(self, path: str) -> Entry:
        """One object; an empty one on S3 next to others below its name stands for a folder.

        Raises: FileNotFoundError, IsADirectoryError, OSError for a pipe, what the store's client raises.
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
        """Return the seconds since an object was written, by the store's own clock; below 0 when that clock was set back.

        Raises: FileNotFoundError, OSError, BotoCoreError.
        """
        if not self.local:
            answer = self.ask(lambda: self._call("head_object", path))
            date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
            now = parsedate_to_datetime(date) if date else datetime.now(UTC)
            return float((now - answer["LastModified"]).total_seconds())
        return disk.age(Path(self.full(path)))

    def is_prefix(self, path: str) -> bool:
        """Whether anything lies below a name on S3, where an object may have that name too.

        Raises: OSError, or what the store's client raises.
        """
        bucket, _, key = self.full(path).partition("/")
        request = partial(self.fs.call_s3, "list_objects_v2", Bucket=bucket, Prefix=f"{key}/", MaxKeys=1)
        return bool(self.ask(request).get("Contents"))

    def read(self, path: str) -> bytes:
        """A whole object; from S3 with its length and, where the etag is one, its MD5 checked.

        Raises: FileNotFoundError, OSError, BotoCoreError.
        """
        if self.local:
            # Who opens a pipe waits for what is to come through it.
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

        return patiently(get)

    def read_range(self, path: str, start: int, length: int) -> bytes:
        """`length` bytes of an object from `start` on; all of them are there.

        Raises: FileNotFoundError, OSError (also when the object ends before), BotoCoreError.
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
            data = patiently(get)
        if len(data) != length:
            raise OSError(errno.EIO, f"it ends before the {length} bytes from {start} on", self.uri(path))
        return data

    def _body(self, answer: dict[str, Any]) -> bytes:
        async def drain() -> bytes:
            async with answer["Body"] as stream:
                data: bytes = await stream.read()
                return data

        body: bytes = wait_for(self.fs.loop, drain)
        return body

    def write(self, path: str, data: bytes, durable: bool = False) -> None:
        """One PUT on S3 (which takes 5 GB), which the store checks by its MD5; a temporary name and a rename on a local
        disk: no reader sees a part of it.

        Args: durable: on the disk itself, not in its cache alone, when this returns.
        """
        if not self.local:
            patiently(lambda: self._call("put_object", path, Body=data, ContentMD5=content_md5(data)))
            return
        disk.write(Path(self.full(path)), data, durable)

    def create(self, path: str, data: bytes) -> bool:
        """Write only where nothing is (If-None-Match on S3, `disk.create` on a disk); False when something else was."""
        if not self.local:
            condition = {"IfNoneMatch": "*", "ContentMD5": content_md5(data)}
            try:
                patiently(lambda: self._call("put_object", path, Body=data, **condition))
                return True
            except OSError as e:
                if refusal(e)[0] != 412:
                    raise
                # The answer to a first try may have been lost: then what lies there is ours.
                return self.read(path) == data
        return disk.create(Path(self.full(path)), data)

    def folds_case(self) -> bool:
        """Return whether two names that differ in case name one file here, as on exFAT, and on most disks of macOS."""
        return self.local and disk.folds_case(Path(self.root))

    def delete(self, path: str) -> None:
        """Raises: FileNotFoundError on a local disk; S3 does not say whether there was anything."""
        self.ask(lambda: self.fs.rm_file(self.full(path)))

    def sweep(self, spare: str) -> None:
        """Remove the temporary files that killed writers left on a local disk, but none in the folder `spare`.

        Only for who has the rest of the store to himself: a living writer's file would be gone before it got its name.
        """
        if self.local:
            disk.sweep(self.root, self.full(spare))
