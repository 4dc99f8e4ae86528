"""Web pages: the page of `evo2 serve` and the report of `evo2 report`, without any network.

`style.css`, `dom.js` (elements, tables, downloads) and `figures.js` (drawings) serve both.
"""

from importlib.resources import files


def read_asset(name: str) -> str:
    """The text of a file of this package, e.g. "style.css"."""
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
