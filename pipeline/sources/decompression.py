"""The unpacked bytes of a file that gzip, bzip2, xz or zstd packed, or of one that nothing packed.

Packed streams may follow each other, with zeros between them, as `cat` and tapes leave them. What follows them and is no
stream raises: the standard library's readers of bzip2 and xz end in silence there, and another archive may come after.
"""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import pyarrow as pa

from imagemill.pipeline.store_failures import is_damage

READ_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16
BLOCK_BYTES = 512
"""Of a tar."""
MAGIC_BYTES = 10


class DamagedStream(Exception):
    """Packed bytes that cannot be unpacked."""


class TruncatedStream(DamagedStream):
    """Packed bytes that end too early."""


class ConcatenatedStreams:
    """The unpacked bytes of bzip2 or xz streams that follow each other."""

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]) -> None:
        self.file, self.decompressor = file, decompressor
        self._stream = decompressor()

    def read1(self, size: int) -> bytes:
        """At most `size` bytes; none at the end. Raises: EOFError in the middle of a stream; what the decompressor does."""
        packed = b""
        while True:
            if self._stream.eof:
                packed = self._stream.unused_data.lstrip(b"\0")
                while not packed:
                    if not (piece := self.file.read(CHUNK_BYTES)):
                        return b""
                    packed = piece.lstrip(b"\0")
                self._stream = self.decompressor()
            elif self._stream.needs_input and not (packed := self.file.read(CHUNK_BYTES)):
                raise EOFError("it ends in the middle of a packed stream")
            if data := self._stream.decompress(packed, size):
                return bytes(data)
            packed = b""


class ZstdStream:
    """The unpacked bytes of zstd frames that follow each other, by Arrow."""

    def __init__(self, file: BinaryIO) -> None:
        self.stream = pa.CompressedInputStream(file, "zstd")
        self._error: Exception | None = None

    def read1(self, size: int) -> bytes:
        """At most `size` bytes. Raises: what Arrow does, once all that comes before is given: Arrow itself drops that."""
        if self._error:
            raise self._error
        pieces = bytearray()
        try:
            while len(pieces) < size and (piece := self.stream.read(min(BLOCK_BYTES, size - len(pieces)))):
                pieces += piece
        except (OSError, pa.ArrowException) as e:
            if not pieces:
                raise
            self._error = e
        return bytes(pieces)


DECOMPRESSORS: dict[re.Pattern[bytes], Callable[[BinaryIO], Any]] = {
    re.compile(rb"\x1f\x8b\x08"): lambda file: gzip.GzipFile(fileobj=file),
    re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"): lambda file: ConcatenatedStreams(file, bz2.BZ2Decompressor),
    re.compile(rb"\xfd7zXZ\0"): lambda file: ConcatenatedStreams(file, lzma.LZMADecompressor),
    re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"): ZstdStream,
}
"""By the first bytes of a file: names are often wrong, as a gzipped tar is called .tar."""


class DecompressedFile(io.RawIOBase):
    """As a file; a seek forward reads, a seek back opens the packed file again."""

    def __init__(self, opener: Callable[[], BinaryIO], unpack: Callable[[BinaryIO], Any], packed: BinaryIO) -> None:
        self.opener, self.unpack = opener, unpack
        self._begin(packed)

    def _begin(self, packed: BinaryIO) -> None:
        self._packed, self._stream, self._place = packed, self.unpack(packed), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Raises: Damaged, Cut; what the store's client raises."""
        try:
            data: bytes = self._stream.read1(len(buffer))
        except (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException) as e:
            if isinstance(e, OSError) and not isinstance(e, gzip.BadGzipFile) and not is_damage(e):
                raise
            said = " ".join(str(e).split()) or type(e).__name__
            raise (TruncatedStream if isinstance(e, EOFError) or "Truncated" in said else DamagedStream)(said) from None
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def seek(self, place: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("a packed file is read from its beginning")
        if place < self._place:
            self._packed.close()
            self._begin(self.opener())
        while self._place < place and self.read(min(READ_BYTES, place - self._place)):
            pass
        return self._place

    def close(self) -> None:
        self._packed.close()
        super().close()


def find_decompressor(head: bytes) -> Callable[[BinaryIO], Any] | None:
    """What unpacks a file that begins with these bytes; None for one that is not packed."""
    return next((unpack for magic, unpack in DECOMPRESSORS.items() if magic.match(head)), None)


def open_decompressed(opener: Callable[[], BinaryIO]) -> io.BufferedReader:
    """The unpacked bytes of a file, which `opener` opens. Raises: what it does."""
    file = opener()
    unpack = find_decompressor(file.read(MAGIC_BYTES))
    file.seek(0)
    raw = DecompressedFile(opener, unpack, file) if unpack else file
    return io.BufferedReader(raw, READ_BYTES)  # type: ignore[arg-type]  # fsspec's files are raw ones
