"""The files of the pages: complete, labelled, without network, and no text becomes code."""

import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from evo2cli.pages import read_asset

HTML = ("serve.html", "report.html")
SCRIPTS = ("dom.js", "figures.js", "serve.js", "report.js")
VOID = {"meta", "link", "input", "br"}


class Page(HTMLParser):
    """The elements of a page with the texts of those around them, and whether all are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.texts: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), list(self._open)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]] = self.texts.get(self._open[-1], "") + data


@pytest.mark.parametrize("name", HTML)
def test_a_page_is_well_formed_and_labelled(name: str) -> None:
    page = Page(read_asset(name))
    tags = [tag for tag, _, _ in page.elements]
    assert tags.count("main") == tags.count("title") == 1
    attributes = [found for _, found, _ in page.elements]
    ids = [found["id"] for found in attributes if "id" in found]
    assert len(ids) == len(set(ids))
    labelled = {found.get("for") for tag, found, _ in page.elements if tag == "label"}
    for tag, found, around in page.elements:
        if tag in ("input", "select", "textarea"):
            assert "label" in around or found["id"] in labelled, found
        if tag == "button":
            assert found["type"] in ("submit", "button")
        for reference in (found.get("for"), found.get("aria-labelledby")):
            assert reference is None or reference in ids
    html = next(found for tag, found, _ in page.elements if tag == "html")
    assert html["lang"] == "en"
    assert any(found.get("name") == "viewport" for found in attributes)


@pytest.mark.parametrize("name", HTML)
def test_a_page_loads_nothing_from_elsewhere_and_has_no_inline_code(name: str) -> None:
    for tag, found, _ in Page(read_asset(name)).elements:
        for attribute, value in found.items():
            assert not attribute.startswith("on")
            assert attribute != "style"
            if attribute in ("src", "href"):
                assert value is not None
                assert value.startswith(("/page/", "#", "data:,", "/docs")), value
        if name == "serve.html":
            assert tag != "style"
            assert tag != "script" or "src" in found


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_turn_no_text_into_code(name: str) -> None:
    script = read_asset(name)
    assert '"use strict";' in script
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacent",
        "document.write",
        "eval(",
        "Function(",
    ):
        assert word not in script
    assert not re.search(r"https?://", script)
    assert "</script" not in script  # the report holds it in such an element
    assert not re.search(r"setAttribute\(\s*[\"']style", script)


def test_scripts_ask_for_what_the_page_has() -> None:
    """Every element that the script looks up by its id is there."""
    ids = {found["id"] for _, found, _ in Page(read_asset("serve.html")).elements if "id" in found}
    script = read_asset("serve.js")
    asked = set(re.findall(r'find\("([\w-]+)"\)', script))
    names = set(re.findall(r'connect\("(\w+)"', script))
    asked |= {form.format(name) for name in names for form in ("{}", "stop-{}", "{}-status")}
    assert asked
    assert asked <= ids


def test_colours_are_those_of_the_style_in_both_themes() -> None:
    names = re.search(r"NAMES_OF_COLOURS = \[(.*?)\]", read_asset("figures.js"), re.DOTALL)
    assert names is not None
    style = read_asset("style.css")
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    for name in re.findall(r'"(\w+)"', names[1]):
        for theme in (light, dark):
            assert re.search(rf"--{name}: #[0-9a-f]{{6}};", theme), name


def test_every_file_is_used() -> None:
    found = {file.name for file in files("evo2cli.pages").iterdir() if file.is_file()}
    assert found == {"__init__.py", "style.css", *HTML, *SCRIPTS}
