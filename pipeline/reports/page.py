"""Render self-contained HTML pages from the templates in `pages/`; a page loads nothing from outside."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from imagemill.pipeline.sources.addresses import redact_secrets

TEMPLATES = Path(__file__).parent / "pages"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def format_bytes(size: float) -> str:
    """Format a number of bytes: 1.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_seconds(seconds: float) -> str:
    """Format a duration: 40 ms, 1.2 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_number(value: float) -> str:
    """Format a whole number with thousands separators, any other number with four significant digits."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 10_000 else f"{value:.4g}"


def hide_secrets(value: object) -> object:
    """Remove the secrets of addresses from a value that a template prints."""
    return redact_secrets(value) if isinstance(value, str) and not isinstance(value, Markup) else value


ENVIRONMENT = Environment(
    loader=FileSystemLoader(TEMPLATES),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=hide_secrets,
    trim_blocks=True,
    lstrip_blocks=True,
)
ENVIRONMENT.filters |= {"bytes": format_bytes, "seconds": format_seconds, "number": format_number}


def render_page(template: str, values: dict[str, object], script: str = "") -> bytes:
    """Render a template; all values are escaped.

    Args:
        template: file name in `pages/`.
        values: the variables of the template.
        script: JavaScript of the page. The page's policy allows only a script with this digest, so a script in a file name
            stays text.
    """
    policy = POLICY
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    page = ENVIRONMENT.get_template(template).render({**values, "policy": policy, "script": script})
    return page.encode(errors="backslashreplace")


def data_url(image: bytes, kind: str) -> str:
    """Return the data URL of an encoded image; `kind` is webp, png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
