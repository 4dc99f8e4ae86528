"""The HTML of a report: data as JSON, with the style sheet and scripts of `evo2cli.pages`."""

import base64
import hashlib
import html
import json
from string import Template
from typing import Any

from evo2cli.pages import read_asset

SCRIPTS = ("dom.js", "figures.js", "report.js")


def report_page(title: str, data: dict[str, Any]) -> str:
    """Render a self-contained HTML file.

    Its Content-Security-Policy allows only these scripts and styles, by their hashes, and blocks
    all network requests.
    """
    style = read_asset("style.css")
    script = "\n".join(map(read_asset, SCRIPTS))
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return Template(read_asset("report.html")).substitute(
        title=html.escape(title),
        policy=policy,
        style=style,
        script=script,
        # Escaped, so that no text of the data can close the script element.
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _hash(text: str) -> str:
    """The hash source of an inline element for a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
