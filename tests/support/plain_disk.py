"""A file system without hard links, like exFAT and many FUSE systems: `python plain_disk.py FOLDER MOUNT`.

It serves FOLDER at MOUNT, ignores case, refuses names with characters that exFAT refuses, has no fsync, and does not rename
a file over another one.
"""

import errno
import os
import sys
from typing import Any

import mfusepy

REFUSED = set(':?*"<>|\\')


class Plain(mfusepy.Operations):
    use_ns = True

    def __init__(self, root: str) -> None:
        self.root = root

    def real(self, path: str) -> str:
        if REFUSED & set(path):
            raise mfusepy.FuseOSError(errno.EINVAL)
        place = self.root
        for part in filter(None, path.split("/")):
            names = os.listdir(place) if os.path.isdir(place) else []
            place = os.path.join(place, next((name for name in names if name.casefold() == part.casefold()), part))
        return place

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        status = os.lstat(self.real(path))
        times = {f"st_{kind}time": getattr(status, f"st_{kind}time_ns") for kind in "amc"}
        return {key: getattr(status, key) for key in ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid")} | times

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self.real(path))]

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.real(path), mode)

    def unlink(self, path: str) -> None:
        os.unlink(self.real(path))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        if os.path.exists(self.real(new)):
            raise mfusepy.FuseOSError(errno.EEXIST)
        os.rename(self.real(old), self.real(new))

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self.real(path), os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)

    def open(self, path: str, flags: int) -> int:
        return os.open(self.real(path), flags)

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(self.real(path), length)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        raise mfusepy.FuseOSError(errno.EINVAL)

    fsyncdir = fsync


if __name__ == "__main__":
    mfusepy.FUSE(Plain(sys.argv[1]), sys.argv[2], foreground=True, nothreads=True)
