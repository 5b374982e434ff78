"""Tar shards, WebDataset's above all: each image member is an image; json and txt members with its key are its sidecars.

Members that share a name up to its first dot belong together, as in WebDataset. Shards may be compressed, and a shard may
contain several archives, one after the other, as `cat a.tar b.tar` makes it. All of them are read.
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
"""Extensions of sidecar files that are copied into `extra` if the config names none."""
MAX_SIDECAR_BYTES = 64_000
"""Larger sidecar files are replaced by a note."""
LINK = "Link: a link in a tar, not a file"
HOLES = "Sparse: a member with holes, as `tar -S` makes them. Pack it without -S"
STILL_WRITTEN = "it was cut off, or is still being written"
LOST = "the members after it are lost"
RANGE_BYTES = 8 << 20
"""Bytes of a shard in S3 that are fetched at a time."""
NEAR_BYTES = 256 << 10
"""If a member begins at most this far behind the bytes fetched last, the members are read one after the other."""
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
SIGNATURES = {
    "a ZIP archive": rb"PK\x03\x04",
    "a RAR archive": rb"Rar!",
    "a 7z archive": rb"7z\xbc\xaf",
    "data compressed by gzip": rb"\x1f\x8b",
    "data compressed by bzip2": rb"BZh",
    "data compressed by xz": rb"\xfd7zXZ",
    "data compressed by zstd": rb"\x28\xb5\x2f\xfd",
    "Parquet": rb"PAR1",
    "a web page": rb"\s*<(?i:!doctype|html)",
    "XML": rb"\s*<\?xml",
    "a pointer of Git LFS": rb"version https://git-lfs",
}
"""Patterns of the first bytes of files that are often found in place of a tar."""
HEAD_BYTES = 24
MAX_OFFSET = (1 << 63) - 1
"""The largest offset that a file can have."""

MemberKey = tuple[int, str]
"""Number of the archive in the shard, and the key that an image shares with its sidecars."""


def describe_signature(head: bytes) -> str | None:
    """Describe the file that begins with these bytes; return None for an unknown kind."""
    kind = next((kind for kind, magic in SIGNATURES.items() if re.match(magic, head)), None)
    return kind or ("an image" if has_image_signature(head) else None)


class ShardError(Exception):
    """Raised where a shard cannot be read further; the message is a problem, `Class: reason`."""


class Archive(tarfile.TarFile):
    """One archive of a shard. `iterate_members` reads its headers, because TarFile ends silently at a damaged header."""

    def next(self) -> None:
        """Return no member, so that opening the archive does not read its first header."""
        return None


def iterate_members(file: io.BufferedReader) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """Yield every member of the archives in a shard, with the number of its archive, from 0.

    The data of a member may be read before the next member is requested.

    Raises:
        ShardError: at a damaged header, at an end without an end mark, and where an end mark is followed by other data.
        DamagedStream: when the compressed bytes are damaged.
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
        previous = None
        while True:
            header = archive.offset
            file.seek(header)
            try:
                member = tarfile.TarInfo.fromtarfile(archive)
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                break
            except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
                raise ShardError(f"CutShard: it has no end mark: {STILL_WRITTEN}") from None
            except (tarfile.TarError, ValueError, OverflowError, MemoryError, RecursionError) as e:
                raise ShardError(describe_bad_header(e, file, header, begin, previous)) from None
            if not header < archive.offset <= MAX_OFFSET:
                raise ShardError(f"BadShard: {escape_name(member.name)} has an impossible size: {LOST}")
            previous = member.name
            yield number, member
    if file.tell() == 0:
        raise ShardError(f"CutShard: the file is empty: {STILL_WRITTEN}")


def skip_zeros(file: io.BufferedReader) -> bool:
    """Go to the next byte that is not zero; return whether there is one. End marks and padding are zeros."""
    while ahead := file.peek():
        zeros = len(ahead) - len(ahead.lstrip(b"\0"))
        file.read(zeros)
        if zeros < len(ahead):
            return True
    return False


def describe_bad_header(error: Exception, file: BinaryIO, header: int, begin: int, previous: str | None) -> str:
    """Return the problem of a shard with a header that cannot be read.

    Args:
        error: what reading the header raised.
        file: the shard, after the bytes that were read.
        header: offset of the header in bytes.
        begin: offset of its archive in bytes.
        previous: name of the member before it; None for the first header of an archive.
    """
    # The header of a long name is followed by the name and by another header.
    is_longer = isinstance(error, tarfile.SubsequentHeaderError | tarfile.ReadError)  # type: ignore[attr-defined]
    is_cut = isinstance(error, tarfile.TruncatedHeaderError) or (is_longer and not file.read(1))  # type: ignore[attr-defined]
    if previous is not None:
        after = f"after the member {escape_name(previous)}, at byte {header:,}"
        if is_cut:
            return f"CutShard: it ends in the middle of a header, {after}: {STILL_WRITTEN}"
        return f"BadShard: the header {after}, cannot be read ({error}): {LOST}"
    file.seek(begin)
    head = file.read(HEAD_BYTES)
    kind = describe_signature(head)
    if is_cut and not kind:
        return f"CutShard: it ends in the middle of a header, at byte {header:,}: {STILL_WRITTEN}"
    content = kind or f"unknown data that begins with {head[:8]!r}"
    if begin:
        return f"BadShard: the data after the end of an archive, from byte {begin:,}, is not a tar archive but {content}"
    return f"BadShard: it is not a tar archive but {content}"


def open_shard(store: Store, path: str) -> io.BufferedReader:
    """Open a shard, and return its decompressed content."""
    return open_decompressed(partial(store.open, path, RANGE_BYTES))


def index_tar(store: Store, path: str, config: SourceConfig) -> Iterator[ListedEntry]:
    """List the images of a tar shard, like `ShardFormat.index`.

    The etag of a member is a digest of its bytes, so the members of a shard that grew keep their identity. In a shard that
    was cut off, the images before the cut are listed, then one reject for the shard.
    """
    sidecars = SIDECARS if config.carry is None else config.carry
    images: list[tuple[int, MemberKey, ListedImage]] = []
    """Offset, key and image, for sorting and for adding the sidecars."""
    links: list[tuple[MemberKey, str, str]] = []
    """Hard links with the name of an image: key, name, and the name of the target."""
    extras: dict[MemberKey, dict[str, Any]] = {}
    other_kinds: Counter[str] = Counter()
    problem = None
    with open_shard(store, path) as file:
        try:
            for number, member in iterate_members(file):
                if member.isdir():
                    continue
                name = escape_name(member.name.removeprefix("./"))
                stem, extension = split_key(member.name)
                key = number, stem
                if is_excluded(name):
                    other_kinds[EXCLUDED] += 1
                # A member with holes (`tar -S`) may claim any size, and its bytes are not contiguous.
                elif member.isfile() and not member.issparse():
                    head, digest, sidecar = read_member(file, member, extension in sidecars)
                    if sidecar is not None:
                        extras.setdefault(key, {})[extension] = sidecar
                        other_kinds[file_kind(name)] += 1
                    elif is_image_name(name) or (not extension and has_image_signature(head)):
                        image = ListedImage(f"{path}/{name}", member.size, digest, path, member.offset_data)
                        images.append((member.offset_data, key, image))
                    else:
                        other_kinds[file_kind(name)] += 1
                elif not is_image_name(name):
                    other_kinds[file_kind(name)] += 1
                elif member.islnk():
                    links.append((key, name, escape_name(member.linkname.removeprefix("./"))))
                else:
                    etag, member_problem = describe_special_member(member)
                    image = ListedImage(f"{path}/{name}", 0, etag, path, problem=member_problem)
                    images.append((member.offset, key, image))
        except ShardError as e:
            problem = str(e)
        except DamagedStream as e:
            problem = f"{'CutShard' if isinstance(e, TruncatedStream) else 'BadShard'}: {e}: {LOST}"
        except UnicodeError:
            problem = "BadShard: a member's name cannot be read"
    images += resolve_links(path, links, images)
    # A hard link has the offset of its target. Sorting keeps the order in which a compressed shard can be read.
    for _, key, image in sorted(images, key=lambda entry: entry[0]):
        yield replace(image, extra=to_extra(extras.get(key, {})))
    yield from other_kinds.elements()
    if problem:
        yield ListedImage(path, 0, f"cut after {len(images)} images", path, problem=problem)


def resolve_links(
    path: str, links: list[tuple[MemberKey, str, str]], images: list[tuple[int, MemberKey, ListedImage]]
) -> list[tuple[int, MemberKey, ListedImage]]:
    """Return hard links as images with the offset of their target; a link without a target is a reject."""
    targets: dict[tuple[int, str], tuple[int, ListedImage]] = {}
    if links:
        targets = {(number, image.rel_path): (offset, image) for offset, (number, _), image in reversed(images)}
    missing = 0, ListedImage("", 0, "link", path, problem=LINK)
    resolved = []
    for key, name, target in links:
        offset, image = targets.get((key[0], f"{path}/{target}"), missing)
        resolved.append((offset, key, replace(image, rel_path=f"{path}/{name}")))
    return resolved


def describe_special_member(member: tarfile.TarInfo) -> tuple[str, str]:
    """Return the etag and the problem of an image that is not a regular file."""
    if member.issparse():
        return "sparse", HOLES
    if member.issym():
        return "link", LINK
    return "no file", f"BadName: {NOT_A_FILE}"


def split_key(name: str) -> tuple[str, str]:
    """Return the key and the extension of a member: the text before and after the first dot of its last component."""
    folder, _, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return f"{folder}/{stem}", extension.lower()


def read_member(file: BinaryIO, member: tarfile.TarInfo, is_sidecar: bool) -> tuple[bytes, str, Any]:
    """Read a member in small pieces.

    Returns:
        The first 16 bytes, a digest of all bytes (empty for a sidecar), and the content of a sidecar (None for others).

    Raises:
        ShardError: when the member is cut off.
    """
    digest, head, content, remaining = hashlib.blake2b(digest_size=16), b"", b"", member.size
    file.seek(member.offset_data)
    while remaining and (data := file.read(min(READ_BYTES, remaining))):
        head = head or data[:16]
        digest.update(data)
        remaining -= len(data)
        if is_sidecar and len(content) <= MAX_SIDECAR_BYTES:
            content += data
    if remaining:
        raise ShardError(f"CutShard: {escape_name(member.name)} is cut off: {LOST}")
    if not is_sidecar:
        return head, digest.hexdigest(), None
    if len(content) > MAX_SIDECAR_BYTES:
        return head, "", f"left out: {member.size} bytes, more than {MAX_SIDECAR_BYTES}"
    text = content.decode("utf-8", "replace")
    try:
        return head, "", parse_json(text)
    except (ValueError, RecursionError):
        return head, "", text


class TarReader:
    """Reads the members of one tar shard. Bytes that are read ahead of one member serve the next members.

    Args:
        store: the location of the input.
        path: the shard.
        config: not used; all shard readers take it.
    """

    def __init__(self, store: Store, path: str, config: SourceConfig) -> None:
        self.store, self.path = store, path
        self.size = store.entry(path).size
        is_compressed = find_decompressor(store.read_range(path, 0, min(MAGIC_BYTES, self.size)))
        self.decompressed = open_shard(store, path) if is_compressed else None
        self._buffer, self._buffer_offset = b"", 0
        """The bytes of the shard that were fetched last, and their offset."""

    def read(self, offset: int, size: int) -> bytes:
        """Return `size` bytes of the decompressed shard from `offset`."""
        if self.decompressed:
            self.decompressed.seek(offset)
            return self.decompressed.read(size)
        start = offset - self._buffer_offset
        if start < 0 or start + size > len(self._buffer):
            # A run over a sample jumps from member to member, and does not need the bytes between them.
            is_next = 0 <= start - len(self._buffer) <= NEAR_BYTES
            length = min(max(size, RANGE_BYTES), self.size - offset) if is_next else size
            self._buffer, self._buffer_offset, start = self.store.read_range(self.path, offset, length), offset, 0
        return self._buffer[start : start + size]


FORMAT = ShardFormat(SUFFIXES, index_tar, TarReader)
