"""Read files that gzip, bzip2, xz or zstd compressed, or that are not compressed, by their first bytes.

A file may contain several compressed streams with zeros between them, as `cat` and tapes leave them. Other data after a
stream is an error. (The standard library's readers of bzip2 and xz end silently there, although another archive may follow.)
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
"""Block size of a tar."""
MAGIC_BYTES = 10


class DamagedStream(Exception):
    """Raised for compressed bytes that cannot be decompressed."""


class TruncatedStream(DamagedStream):
    """Raised for compressed bytes that end too early."""


class ConcatenatedStreams:
    """Decompresses bzip2 or xz streams that follow each other in a file.

    Args:
        file: the compressed file.
        decompressor: makes a decompressor of the standard library for one stream.
    """

    def __init__(self, file: BinaryIO, decompressor: Callable[[], Any]) -> None:
        self.file, self.decompressor = file, decompressor
        self._stream = decompressor()

    def read1(self, size: int) -> bytes:
        """Return at most `size` bytes; no bytes at the end.

        Raises:
            EOFError: when the file ends in the middle of a stream.
            OSError, lzma.LZMAError: when a stream is damaged.
        """
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
                raise EOFError("it ends in the middle of a compressed stream")
            if data := self._stream.decompress(packed, size):
                return bytes(data)
            packed = b""


class ZstdStream:
    """Decompresses zstd frames that follow each other in a file, with Arrow."""

    def __init__(self, file: BinaryIO) -> None:
        self.stream = pa.CompressedInputStream(file, "zstd")
        self._error: Exception | None = None

    def read1(self, size: int) -> bytes:
        """Return at most `size` bytes; no bytes at the end.

        Arrow drops the bytes before a damaged place. Here they are returned first, and the next call raises.

        Raises:
            OSError, pa.ArrowException: when a frame is damaged or cut off.
        """
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
"""Decompressors by the first bytes of a file. Names are not used, because a gzipped tar is often called .tar."""


class DecompressedFile(io.RawIOBase):
    """The decompressed content of a file, as a raw file object.

    A seek forward reads the bytes in between. A seek back opens the compressed file again.

    Args:
        opener: opens the compressed file.
        decompress: one of the functions of DECOMPRESSORS.
        compressed: the compressed file, already open at its beginning.
    """

    def __init__(self, opener: Callable[[], BinaryIO], decompress: Callable[[BinaryIO], Any], compressed: BinaryIO) -> None:
        self.opener, self.decompress = opener, decompress
        self._begin(compressed)

    def _begin(self, compressed: BinaryIO) -> None:
        self._compressed, self._stream, self._position = compressed, self.decompress(compressed), 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in the decompressed content."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; return the number of bytes.

        Raises:
            DamagedStream, TruncatedStream: when the compressed bytes cannot be decompressed.
        """
        try:
            data: bytes = self._stream.read1(len(buffer))
        except (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException) as e:
            if isinstance(e, OSError) and not isinstance(e, gzip.BadGzipFile) and not is_damage(e):
                raise
            message = " ".join(str(e).split()) or type(e).__name__
            raise (TruncatedStream if isinstance(e, EOFError) or "Truncated" in message else DamagedStream)(
                message
            ) from None
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, position: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position from the beginning; return the position, which is smaller at the end of the content."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("a compressed file is read from its beginning")
        if position < self._position:
            self._compressed.close()
            self._begin(self.opener())
        while self._position < position and self.read(min(READ_BYTES, position - self._position)):
            pass
        return self._position

    def close(self) -> None:
        """Close the compressed file."""
        self._compressed.close()
        super().close()


def find_decompressor(head: bytes) -> Callable[[BinaryIO], Any] | None:
    """Return the decompressor for a file that begins with these bytes; None if the file is not compressed."""
    return next((decompress for magic, decompress in DECOMPRESSORS.items() if magic.match(head)), None)


def open_decompressed(opener: Callable[[], BinaryIO]) -> io.BufferedReader:
    """Open a file that may be compressed, and return its decompressed content.

    Args:
        opener: opens the file. A seek back calls it again.
    """
    file = opener()
    decompress = find_decompressor(file.read(MAGIC_BYTES))
    file.seek(0)
    raw = DecompressedFile(opener, decompress, file) if decompress else file
    return io.BufferedReader(raw, READ_BYTES)  # type: ignore[arg-type]  # fsspec's files are raw files
