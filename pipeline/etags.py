"""Whether the bytes of an S3 object are those that its etag is the MD5 of, where etags are MD5s."""

import errno
import hashlib
import logging
import re
import threading
from typing import Any

log = logging.getLogger("imagemill.storage")
MD5 = re.compile("[0-9a-f]{32}")


class Etags:
    """What this process found out about the etags of one bucket.

    An etag of 32 hexadecimal digits may be no MD5: S3 Express, gateways and encrypting servers have such. A bit that flips
    on the way looks the same, but not twice: where the same bytes come again, the etag is no MD5.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.compared = True
        self.warned = False
        self._matched = False

    def check(self, path: str, data: bytes, answer: dict[str, Any], earlier: set[str]) -> None:
        """Compare a whole object with the etag that came with it.

        An etag is not looked at where the object was put in parts (it has a dash then) or lies encrypted by KMS or a key of
        the client.

        Args: earlier: MD5s of the bytes that earlier tries gave; that of these bytes is added.

        Raises: OSError when they differ, and the same bytes did not come before.
        """
        etag = answer.get("ETag", "").strip('"')
        opaque = "aws:" in answer.get("ServerSideEncryption", "") or answer.get("SSECustomerAlgorithm")
        if not self.compared or opaque or not MD5.fullmatch(etag):
            return
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if digest == etag:
            self._matched = True
            return
        if digest not in earlier:
            earlier.add(digest)
            raise OSError(errno.EIO, f"the bytes that came do not have the MD5 of their etag {etag}", path)
        # Where other etags are MD5s they are still compared: it is this object that has another kind.
        self.compared = self._matched
        self.warn()

    def warn(self) -> None:
        """Tell a person, once."""
        if not self.warned:
            self.warned = True
            log.warning(
                "%s: an etag is not the MD5 of its object (two reads gave the same bytes). Such objects are not compared "
                "with their etags, so a bit that flips on the way may not be noticed",
                self.place,
            )


_known: dict[str, Etags] = {}
_lock = threading.Lock()


def etags_of(place: str) -> Etags:
    """Return what this process knows of a bucket, `s3://bucket` and the endpoint where one is set."""
    with _lock:
        return _known.setdefault(place, Etags(place))


def doubted() -> list[str]:
    """Return the buckets of which this process found etags that are no MD5."""
    with _lock:
        return [place for place, etags in _known.items() if etags.warned]
