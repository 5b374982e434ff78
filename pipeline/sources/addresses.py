"""Web addresses: the schemes that are fetched, and the secrets that no message may show. Costs nothing to import."""

import re

WEB_SCHEMES = ("http", "https")
USER_INFO = re.compile(r"(?<=://)[^/?#\s]+(?=@)")
SECRET_PARAMETER = re.compile(r"([?&][^=&\s]*(?:sig|token|secret|passw|credential|key)[^=&\s]*=)[^&\s\"'<>]+", re.IGNORECASE)


def redact_secrets(text: str) -> str:
    """Remove the secrets of the URLs in a text: a password before the host, a signature in the query."""
    return SECRET_PARAMETER.sub(r"\1…", USER_INFO.sub("…", text))
