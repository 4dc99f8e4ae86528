"""The file of a report: the data as JSON, and the style and scripts of `evo2cli.pages`."""

import base64
import hashlib
import html
import json
from string import Template
from typing import Any

from evo2cli.pages import read_asset

SCRIPTS = ("dom.js", "figures.js", "report.js")


def report_page(title: str, data: dict[str, Any]) -> str:
    """One HTML file that needs no other.

    Its policy lets the browser run these scripts alone, which are named by their hashes, and load
    nothing from anywhere.
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
        # No text of the data can end the element that holds it.
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    )


def _hash(text: str) -> str:
    """How a Content-Security-Policy names the content of an inline element."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
