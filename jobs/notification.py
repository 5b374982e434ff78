"""Word of a night to whoever asked."""

import http.client
import json
import logging
import subprocess
import urllib.request
from collections.abc import Callable
from functools import partial
from typing import Any

from imagemill.jobs.night_config import Notify

log = logging.getLogger("imagemill.nightly")
WEBHOOK_SECONDS = 10


def tell(notify: Notify, summary: dict[str, Any]) -> None:
    """Hand over the summary; a hook that fails is a warning, the night is done all the same."""
    text = json.dumps(summary, ensure_ascii=False).encode()

    def tried(name: str, hand_over: Callable[[], object]) -> None:
        try:
            hand_over()
        except (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError) as e:
            # Its arguments or URL may hold a secret: what failed is said, not with what.
            log.warning("the notification by %s failed: %s", name, type(e).__name__)

    if command := notify.command:
        tried(f"notify.command ({command[0]})", lambda: subprocess.run(command, input=text, check=True, timeout=60))
    if notify.webhook:
        request = partial(urllib.request.Request, notify.webhook, text, {"Content-Type": "application/json"})
        tried("notify.webhook", lambda: urllib.request.urlopen(request(), timeout=WEBHOOK_SECONDS).close())
