"""Check the bytes of S3 objects against their etags, in buckets whose etags are MD5s."""

import errno
import hashlib
import logging
import re
import threading
from typing import Any

log = logging.getLogger("imagemill.storage")
MD5 = re.compile("[0-9a-f]{32}")


class Etags:
    """What this process knows about the etags of one bucket.

    An etag of 32 hexadecimal digits is not always an MD5: S3 Express, gateways and encrypting servers use other values. A
    flipped bit looks the same at first, but not twice: if a second read returns the same bytes, the etag is not an MD5.

    Args:
        place: `s3://bucket`, and the endpoint if one is set.
    """

    def __init__(self, place: str) -> None:
        self.place = place
        self.compared = True
        self.warned = False
        self._matched = False

    def check(self, path: str, data: bytes, answer: dict[str, Any], earlier: set[str]) -> None:
        """Compare an object with its etag.

        Nothing is compared if the object was uploaded in parts (its etag has a dash) or is encrypted by KMS or a client key.

        Args:
            path: names the object in an error.
            data: the whole object.
            answer: response of get_object.
            earlier: MD5s of the bytes of earlier reads; the MD5 of these bytes is added.

        Raises:
            OSError: when the MD5 and the etag differ and no earlier read returned the same bytes.
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
            raise OSError(errno.EIO, f"the received bytes do not match the MD5 in their etag {etag}", path)
        # If other etags of the bucket were MD5s, only this object has another kind of etag.
        self.compared = self._matched
        self.warn()

    def warn(self) -> None:
        """Log once that objects of this bucket cannot be checked."""
        if not self.warned:
            self.warned = True
            log.warning(
                "%s: an etag is not the MD5 of its object (two reads gave the same bytes). Such objects are not compared "
                "with their etags, so damage in transit may not be noticed",
                self.place,
            )


_buckets: dict[str, Etags] = {}
_lock = threading.Lock()


def etags_of(place: str) -> Etags:
    """Return what this process knows about a bucket: `s3://bucket`, and the endpoint if one is set."""
    with _lock:
        return _buckets.setdefault(place, Etags(place))


def unchecked_buckets() -> list[str]:
    """Return the buckets in which this process met etags that are not MD5s."""
    with _lock:
        return [place for place, etags in _buckets.items() if etags.warned]
