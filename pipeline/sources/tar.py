"""Tar shards, WebDataset's above all: each image member is an image, json and txt beside it go along.

Members that share a name up to its first dot belong together, as WebDataset has it. Shards may be compressed.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO

import pyarrow as pa

from models.narrow import present
from pipeline.sources.folder import is_image_name, kind_of
from pipeline.sources.source import Found, Listed, ShardFormat, SourceConfig, carried, escaped
from pipeline.storage import Store

SIDECARS = ("json", "txt")
MAX_SIDECAR_BYTES = 64_000
READ_BYTES = 1 << 20
LINK = "Link: a link in a tar, not a file"
HOLES = "Sparse: a member with holes, as tar -S makes them: pack it without -S"
BLOCK_BYTES = 8 << 20
"""What is fetched of a shard in S3 at a time."""
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
# What a damaged or cut shard raises, packed or not.
CUT = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
MAGIC = (
    b"\xff\xd8\xff",
    b"\x89PNG\r\n",
    b"GIF8",
    b"BM",
    b"II*\0",
    b"MM\0*",
    b"RIFF",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
)
# What begins with the length of its first box: AVIF, and HEIC, which ends as a reject that says so.
BOXES = (b"ftypavif", b"ftypavis", b"ftypmif1", b"ftyphei", b"ftyphev")


def begins_as_image(head: bytes) -> bool:
    return head.startswith(MAGIC) or head.startswith(BOXES, 4)


class Zstandard(io.RawIOBase):
    """The unpacked bytes of a file that zstd packed, by Arrow; a seek reads forward, or opens the file again."""

    def __init__(self, opened: Callable[[], BinaryIO]) -> None:
        self.opened = opened
        self._begin()

    def _begin(self) -> None:
        self._stream, self._place = pa.CompressedInputStream(self.opened(), "zstd"), 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        try:
            data: bytes = self._stream.read(len(buffer))
        except OSError as e:
            if "zstd" in str(e).lower() or "compressed stream" in str(e).lower():
                raise EOFError(str(e)) from None
            raise
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only places from the start on")
        if place < self._place:
            self._begin()
        while self._place < place and self.read(min(READ_BYTES, place - self._place)):
            pass
        return self._place


UNPACK: dict[str, Callable[[Callable[[], BinaryIO]], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file()),
    ".tgz": lambda file: gzip.GzipFile(fileobj=file()),
    ".bz2": lambda file: bz2.BZ2File(file()),
    ".xz": lambda file: lzma.LZMAFile(file()),  # noqa: SIM115 - who opens a shard closes it
    ".zst": Zstandard,
}


def opened(store: Store, path: str) -> BinaryIO:
    """The unpacked bytes of a shard; a seek forward in a packed one reads, a seek back begins anew."""
    file = partial(store.fs.open, store.full(path), "rb", block_size=BLOCK_BYTES)
    unpack = next((unpack for suffix, unpack in UNPACK.items() if path.lower().endswith(suffix)), None)
    unpacked: BinaryIO = unpack(file) if unpack else file()
    return unpacked


def index(store: Store, path: str, config: SourceConfig) -> Iterator[Found]:
    """As ShardFormat.index. The etag of a member is a digest of its bytes, so a shard that grew keeps its done members.

    What comes before a cut is there, then one reject for the shard.
    """
    wanted = SIDECARS if config.carry is None else config.carry
    images: list[tuple[str, Listed]] = []
    extras: dict[str, dict[str, Any]] = {}
    others: Counter[str] = Counter()
    problem = None
    with opened(store, path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r|", errorlevel=2) as tar:
                for member in tar:
                    tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps them all; a shard may have millions
                    if member.isdir():
                        continue
                    name = escaped(member.name.removeprefix("./"))
                    key, extension = keyed(member.name)
                    # One with holes (`tar -S`) may claim any size, and its bytes do not lie in one piece.
                    if member.issparse() or not member.isfile():
                        if is_image_name(name):
                            etag, what = ("sparse", HOLES) if member.issparse() else ("link", LINK)
                            images.append((key, Listed(f"{path}/{name}", 0, etag, path, problem=what)))
                        continue
                    head, digest, sidecar = consumed(tar, member, extension in wanted)
                    if sidecar is not None:
                        extras.setdefault(key, {})[extension] = sidecar
                        others[kind_of(name)] += 1
                    elif is_image_name(name) or (not extension and begins_as_image(head)):
                        images.append((key, Listed(f"{path}/{name}", member.size, digest, path, member.offset_data)))
                    else:
                        others[kind_of(name)] += 1
                if not ended(file, tar.offset):
                    problem = "CutShard: it has no end mark, so it was cut off, or is still being written"
        except CUT as e:
            problem = f"CutShard: {' '.join(str(e).split()) or type(e).__name__}: what comes after is lost"
        except UnicodeError:
            problem = "BadShard: a member's name cannot be read"
    for key, listed in images:
        yield replace(listed, extra=carried(extras.get(key, {})))
    yield from others.elements()
    if problem:
        yield Listed(path, 0, f"cut after {len(images)} images", path, problem=problem)


def keyed(name: str) -> tuple[str, str]:
    """(key, extension) of a member: what comes before and after the first dot of its last component."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}/{stem}", extension.lower()


def consumed(tar: tarfile.TarFile, member: tarfile.TarInfo, is_sidecar: bool) -> tuple[bytes, str, Any]:
    """The first bytes of a member, a digest of all, and its content where it is a sidecar; memory stays small.

    Raises: tarfile.ReadError when it is cut.
    """
    file = present(tar.extractfile(member), "the content of a member")
    digest, head, kept, left = hashlib.blake2b(digest_size=16), b"", b"", member.size
    while left and (data := file.read(min(READ_BYTES, left))):
        head = head or data[:16]
        digest.update(data)
        left -= len(data)
        if is_sidecar and len(kept) <= MAX_SIDECAR_BYTES:
            kept += data
    if left:
        raise tarfile.ReadError(f"{member.name} is cut off")
    if not is_sidecar:
        return head, digest.hexdigest(), None
    if len(kept) > MAX_SIDECAR_BYTES:
        return head, "", f"left out: {member.size} bytes, more than {MAX_SIDECAR_BYTES}"
    text = kept.decode("utf-8", "replace")
    try:
        return head, "", json.loads(text)
    except ValueError:
        return head, "", text


def ended(file: BinaryIO, offset: int) -> bool:
    """Whether the archive ended by its mark, two blocks of zeros, and not by the end of the file."""
    return file.tell() > offset


class Reader:
    """As ShardReader; what is read ahead of one member serves the next ones."""

    def __init__(self, store: Store, path: str, config: SourceConfig) -> None:
        self.store, self.path = store, path
        self.unpacked = opened(store, path) if path.lower().endswith(tuple(UNPACK)) else None
        self.size = store.entry(path).size
        self._ahead, self._start = b"", 0

    def read(self, offset: int, size: int) -> bytes:
        if self.unpacked:
            self.unpacked.seek(offset)
            return self.unpacked.read(size)
        place = offset - self._start
        if place < 0 or place + size > len(self._ahead):
            length = min(max(size, BLOCK_BYTES), self.size - offset)
            self._ahead, self._start, place = self.store.read_range(self.path, offset, length), offset, 0
        return self._ahead[place : place + size]


FORMAT = ShardFormat(SUFFIXES, index, Reader)
