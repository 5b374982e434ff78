"""The channel of the Ray engine: Ray's key-value store."""

import json
import logging
from typing import Any

from imagemill.pipeline.cluster.contact import contact

log = logging.getLogger("imagemill.run")
NAMESPACE = b"imagemill"


class RayChannel:
    """Publishes values in Ray's key-value store. The process must be connected to Ray.

    The store is internal to Ray. The public alternative, an actor that counts, would cost a process and its start.
    """

    def publish(self, key: str, content: dict[str, Any]) -> None:
        """Publish a value under a key, and replace the former value of the key. Failures are logged and ignored."""
        from ray.experimental.internal_kv import _internal_kv_put

        try:
            _internal_kv_put(key.encode(), json.dumps(content).encode(), namespace=NAMESPACE)
        except Exception as e:  # noqa: BLE001 - progress reporting is best effort and must never fail a run
            log.warning("progress was not published: %s", e)

    def read(self, prefix: str) -> list[dict[str, Any]]:
        """Return the values published under keys with a prefix. Each answer also shows that Ray is alive (contact.py)."""
        from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_list

        keys = _internal_kv_list(prefix.encode(), namespace=NAMESPACE)
        values = [json.loads(_internal_kv_get(key, namespace=NAMESPACE) or b"{}") for key in keys]
        contact.record_answer()
        return values

    def delete(self, prefix: str) -> None:
        """Delete the values published under keys with a prefix. Failures are logged and ignored."""
        from ray.experimental.internal_kv import _internal_kv_del

        try:
            _internal_kv_del(prefix.encode(), del_by_prefix=True, namespace=NAMESPACE)
        except Exception as e:  # noqa: BLE001 - best effort, see publish
            log.debug("published values were not deleted: %s", e)
