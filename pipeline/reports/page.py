"""Pages that stand by themselves: HTML from the templates in `pages/`, which asks for nothing outside of it."""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from imagemill.pipeline.sources.web import redact_secrets

TEMPLATES = Path(__file__).parent / "pages"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def format_bytes(size: float) -> str:
    """A count of bytes for a person: 1.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def format_seconds(seconds: float) -> str:
    """A duration for a person: 40 ms, 1.2 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def format_number(value: float) -> str:
    """A whole number with its thousands apart, any other with four digits that count."""
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 10_000 else f"{value:.4g}"


def hide_secrets(value: object) -> object:
    """What a page prints, without the secrets that addresses may carry."""
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
    """A page from a template in `pages/` and what it is to show; all values are escaped.

    Args:
        values: what the template names.
        script: JavaScript of the page. Its digest in the page's policy lets it run, and none beside it: whatever stands
            in a file's name stays text.
    """
    policy = POLICY
    if script:
        policy += f"; script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    page = ENVIRONMENT.get_template(template).render({**values, "policy": policy, "script": script})
    return page.encode(errors="backslashreplace")


def data_url(image: bytes, kind: str) -> str:
    """An encoded image (kind: webp, png, jpeg) as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
