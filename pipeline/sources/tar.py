"""Tar shards, WebDataset's above all: each image member is an image, json and txt beside it go along.

Members that share a name up to its first dot belong together, as WebDataset has it. Shards may be compressed, and a shard
may be several archives, one after the other, as `cat a.tar b.tar` makes it: each of them is read.
"""

import hashlib
import io
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, BinaryIO

from imagemill.pipeline.sources.decompression import (
    MAGIC_BYTES,
    READ_BYTES,
    DamagedStream,
    TruncatedStream,
    find_decompressor,
    open_decompressed,
)
from imagemill.pipeline.sources.folder import file_kind, has_image_signature, is_image_name
from imagemill.pipeline.sources.source import (
    ListedEntry,
    ListedImage,
    ShardFormat,
    SourceConfig,
    escape_name,
    parse_json,
    to_extra,
)
from imagemill.pipeline.sources.system_files import EXCLUDED, is_excluded
from imagemill.pipeline.storage import Store
from imagemill.pipeline.store_listing import NOT_A_FILE

SIDECARS = ("json", "txt")
MAX_SIDECAR_BYTES = 64_000
LINK = "Link: a link in a tar, not a file"
HOLES = "Sparse: a member with holes, as tar -S makes them: pack it without -S"
STILL_WRITTEN = "it was cut off, or is still being written"
LOST = "what comes after is lost"
RANGE_BYTES = 8 << 20
"""What is fetched of a shard in S3 at a time."""
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
OTHER_FILES = {
    "a ZIP archive": rb"PK\x03\x04",
    "a RAR archive": rb"Rar!",
    "a 7z archive": rb"7z\xbc\xaf",
    "packed by gzip": rb"\x1f\x8b",
    "packed by bzip2": rb"BZh",
    "packed by xz": rb"\xfd7zXZ",
    "packed by zstd": rb"\x28\xb5\x2f\xfd",
    "Parquet": rb"PAR1",
    "a web page": rb"\s*<(?i:!doctype|html)",
    "XML": rb"\s*<\?xml",
    "a pointer of Git LFS": rb"version https://git-lfs",
}
"""What is often found where a tar is expected, by its first bytes."""
HEAD_BYTES = 24
MAX_OFFSET = (1 << 63) - 1
"""The last byte that a file may have."""


def describe_signature(head: bytes) -> str | None:
    """What begins with these bytes, for a person; None for what is not known."""
    kind = next((kind for kind, magic in OTHER_FILES.items() if re.match(magic, head)), None)
    return kind or ("an image" if has_image_signature(head) else None)


class ShardError(Exception):
    """A shard whose members come to an end before it does, as `Class: reason`."""


class Archive(tarfile.TarFile):
    """One archive of a shard. Its members are asked for one by one below: TarFile ends in silence at a damaged header."""

    def next(self) -> None:
        return None


def iterate_members(file: io.BufferedReader) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Every member of the archives that follow each other in a file, and the number of its archive, from 0 on.

    The data of a member may be read before the next one is asked for, and need not be.

    Raises: Stopped, at a damaged header, at an end without an end mark, and where what follows an end mark is no archive;
        Damaged; what the store's client raises.
    """
    for number in count():
        try:
            if not skip_zeros(file):
                break
        except DamagedStream as e:
            if number == 0 or isinstance(e, TruncatedStream):
                raise
            raise ShardError(
                f"BadShard: the data after the end of an archive, from byte {file.tell():,}, is damaged: {e}"
            ) from None
        begin = file.tell()
        archive = Archive(fileobj=file)
        last = None
        while True:
            place = archive.offset
            file.seek(place)
            try:
                member = tarfile.TarInfo.fromtarfile(archive)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                break
            except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
                raise ShardError(f"CutShard: it has no end mark: {STILL_WRITTEN}") from None
            except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as e:
                raise ShardError(describe_bad_header(e, file, place, begin, last)) from None
            if not place < archive.offset <= MAX_OFFSET:
                raise ShardError(f"BadShard: {escape_name(member.name)} has an impossible size: {LOST}")
            last = member.name
            yield number, member
    if file.tell() == 0:
        raise ShardError(f"CutShard: the file is empty: {STILL_WRITTEN}")


def skip_zeros(file: io.BufferedReader) -> bool:
    """Go to the next byte that is not zero; False where the file ends before. An end mark and what fills up are zeros."""
    while ahead := file.peek():
        zeros = len(ahead) - len(ahead.lstrip(b"\0"))
        file.read(zeros)
        if zeros < len(ahead):
            return True
    return False


def describe_bad_header(error: Exception, file: BinaryIO, place: int, begin: int, last: str | None) -> str:
    """What is wrong where a header cannot be read, as a problem of the shard.

    Args: place, begin: of the header and of its archive. last: the member before it.
    """
    # The header of a long name is followed by the name and another header.
    is_longer = isinstance(error, tarfile.SubsequentHeaderError | tarfile.ReadError)  # type: ignore[attr-defined]
    is_cut = isinstance(error, tarfile.TruncatedHeaderError) or (is_longer and not file.read(1))  # type: ignore[attr-defined]
    if last is not None:
        after = f"after the member {escape_name(last)}, at byte {place:,}"
        if is_cut:
            return f"CutShard: it ends in the middle of a header, {after}: {STILL_WRITTEN}"
        return f"BadShard: the header {after}, cannot be read ({error}): {LOST}"
    file.seek(begin)
    head = file.read(HEAD_BYTES)
    kind = describe_signature(head)
    if is_cut and not kind:
        return f"CutShard: it ends in the middle of a header, at byte {place:,}: {STILL_WRITTEN}"
    what = kind or f"unknown data that begins with {head[:8]!r}"
    if begin:
        return f"BadShard: the data after the end of an archive, from byte {begin:,}, is not a tar archive but {what}"
    return f"BadShard: it is not a tar archive but {what}"


def open_shard(store: Store, path: str) -> io.BufferedReader:
    """The unpacked bytes of a shard."""
    return open_decompressed(partial(store.fs.open, store.full(path), "rb", block_size=RANGE_BYTES))


def index_tar(store: Store, path: str, config: SourceConfig) -> Iterator[ListedEntry]:
    """As ShardFormat.index. The etag of a member is a digest of its bytes, so a shard that grew keeps its done members.

    What comes before a cut is there, then one reject for the shard.
    """
    wanted = SIDECARS if config.carry is None else config.carry
    images: list[tuple[int, tuple[int, str], ListedImage]] = []
    """With the place of each, and the archive and key by which what goes along belongs to it."""
    links: list[tuple[tuple[int, str], str, str]] = []
    """Hard links that are called as images are: archive and key, name, and the name that each leads to."""
    extras: dict[tuple[int, str], dict[str, Any]] = {}
    others: Counter[str] = Counter()
    problem = None
    with open_shard(store, path) as file:
        try:
            for number, member in iterate_members(file):
                if member.isdir():
                    continue
                name = escape_name(member.name.removeprefix("./"))
                key, extension = split_key(member.name)
                if is_excluded(name):
                    others[EXCLUDED] += 1
                # One with holes (`tar -S`) may claim any size, and its bytes do not lie in one piece.
                elif member.isfile() and not member.issparse():
                    head, digest, sidecar = read_member(file, member, extension in wanted)
                    if sidecar is not None:
                        extras.setdefault((number, key), {})[extension] = sidecar
                        others[file_kind(name)] += 1
                    elif is_image_name(name) or (not extension and has_image_signature(head)):
                        image = ListedImage(f"{path}/{name}", member.size, digest, path, member.offset_data)
                        images.append((member.offset_data, (number, key), image))
                    else:
                        others[file_kind(name)] += 1
                elif not is_image_name(name):
                    others[file_kind(name)] += 1
                elif member.islnk():
                    links.append(((number, key), name, escape_name(member.linkname.removeprefix("./"))))
                else:
                    etag, what = describe_special_member(member)
                    image = ListedImage(f"{path}/{name}", 0, etag, path, problem=what)
                    images.append((member.offset, (number, key), image))
        except ShardError as e:
            problem = str(e)
        except DamagedStream as e:
            problem = f"{'CutShard' if isinstance(e, TruncatedStream) else 'BadShard'}: {e}: {LOST}"
        except UnicodeError:
            problem = "BadShard: a member's name cannot be read"
    files = {(number, image.rel_path): (place, image) for place, (number, _), image in reversed(images)} if links else {}
    for group, name, target in links:
        absent = 0, ListedImage("", 0, "link", path, problem=LINK)
        place, image = files.get((group[0], f"{path}/{target}"), absent)
        images.append((place, group, replace(image, rel_path=f"{path}/{name}")))
    # A hard link lies where its file does: a packed shard is read forward.
    for _, group, listed in sorted(images, key=lambda image: image[0]):
        yield replace(listed, extra=to_extra(extras.get(group, {})))
    yield from others.elements()
    if problem:
        yield ListedImage(path, 0, f"cut after {len(images)} images", path, problem=problem)


def describe_special_member(member: tarfile.TarInfo) -> tuple[str, str]:
    """The etag and the problem of an image that is no plain file."""
    if member.issparse():
        return "sparse", HOLES
    if member.issym():
        return "link", LINK
    return "no file", f"BadName: {NOT_A_FILE}"


def split_key(name: str) -> tuple[str, str]:
    """(key, extension) of a member: what comes before and after the first dot of its last component."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}/{stem}", extension.lower()


def read_member(file: BinaryIO, member: tarfile.TarInfo, is_sidecar: bool) -> tuple[bytes, str, Any]:
    """The first bytes of a member, a digest of all, and its content where it is a sidecar; memory stays small.

    Raises: Stopped when it is cut.
    """
    digest, head, kept, left = hashlib.blake2b(digest_size=16), b"", b"", member.size
    file.seek(member.offset_data)
    while left and (data := file.read(min(READ_BYTES, left))):
        head = head or data[:16]
        digest.update(data)
        left -= len(data)
        if is_sidecar and len(kept) <= MAX_SIDECAR_BYTES:
            kept += data
    if left:
        raise ShardError(f"CutShard: {escape_name(member.name)} is cut off: {LOST}")
    if not is_sidecar:
        return head, digest.hexdigest(), None
    if len(kept) > MAX_SIDECAR_BYTES:
        return head, "", f"left out: {member.size} bytes, more than {MAX_SIDECAR_BYTES}"
    text = kept.decode("utf-8", "replace")
    try:
        return head, "", parse_json(text)
    except (ValueError, RecursionError):
        return head, "", text


class TarReader:
    """As ShardReader; what is read ahead of one member serves the next ones."""

    def __init__(self, store: Store, path: str, config: SourceConfig) -> None:
        self.store, self.path = store, path
        self.size = store.entry(path).size
        is_packed = find_decompressor(store.read_range(path, 0, min(MAGIC_BYTES, self.size)))
        self.unpacked = open_shard(store, path) if is_packed else None
        self._ahead, self._start = b"", 0

    def read(self, offset: int, size: int) -> bytes:
        if self.unpacked:
            self.unpacked.seek(offset)
            return self.unpacked.read(size)
        place = offset - self._start
        if place < 0 or place + size > len(self._ahead):
            length = min(max(size, RANGE_BYTES), self.size - offset)
            self._ahead, self._start, place = self.store.read_range(self.path, offset, length), offset, 0
        return self._ahead[place : place + size]


FORMAT = ShardFormat(SUFFIXES, index_tar, TarReader)
