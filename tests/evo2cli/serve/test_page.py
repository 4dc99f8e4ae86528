"""The page in a browser: what it shows and saves is what the paths answer, by pointer or keys."""

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
from PIL import Image

from evo2cli.score import background as score_background
from evo2cli.serve.page import FILES
from evo2cli.tables import cell
from tests.evo2cli.serve.conftest import GENOME, Serving, serving

PROMPT = "ACGTTGCAGGCTTAACGGAT"
SECONDS = 60_000  # milliseconds; only how long a test that fails waits


@pytest.mark.parametrize("path", FILES)
def test_files_come_with_a_strict_policy(server: Serving, path: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 200
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["connect-src"] == policy["style-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    kind = {"/": "html", "css": "css", "js": "javascript"}[path.rpartition(".")[2]]
    assert answer.headers["content-type"] == f"text/{kind}; charset=utf-8"


class Shown:
    """The page of a server; at the end nothing must have gone wrong in it."""

    def __init__(self, chromium: Any, url: str, **how: Any) -> None:
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.context = chromium.new_context(**{"viewport": {"width": 1000, "height": 800}} | how)
        self.page = self.context.new_page()
        self.page.set_default_timeout(SECONDS)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", self._note)
        self.page.goto(url)

    def _note(self, message: Any) -> None:
        # A refusal of the server is shown to the user, and the browser logs its status.
        if message.type in ("error", "warning") and "status of" not in message.text:
            self.problems.append(message.text)

    def wait_for(self, selector: str, text: str) -> None:
        self.page.locator(selector, has_text=re.compile(text)).wait_for(timeout=SECONDS)

    def score(self, text: str) -> None:
        self.page.get_by_label("Variants (").fill(text)
        self.page.get_by_role("button", name="Score", exact=True).click()
        self.wait_for("#score-status", r"Done")

    def saved(self, button: str) -> Path:
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=button).first.click()
        return Path(download.value.path())


@pytest.fixture
def shown(chromium: Any, server: Serving) -> Iterator[Shown]:
    found = Shown(chromium, server.url)
    found.wait_for("#about", "nano")
    yield found
    found.context.close()
    assert found.problems == []
    assert all(url.startswith((server.url, "blob:", "data:")) for url in found.asked)


def test_a_variant_is_shown_with_what_is_around_it(shown: Shown, server: Serving) -> None:
    shown.page.get_by_text("Windows", exact=True).first.click()
    shown.page.get_by_label("Bases in a window").fill("64")
    shown.score("chr1-40-C-G")
    (row,) = server.post("/v1/variants", variants=["chr1-40-C-G"], window=64)["variants"]
    cells = shown.page.locator("#results tbody td").all_text_contents()
    assert cells[:5] == ["chr1", "40", ".", "C", "G"]
    assert cells[5] == f"{row['EVO2_DELTA']:.3f}".replace("-", "\u2212")
    figure = shown.page.locator("#place figure")
    canvas = figure.locator("canvas")
    assert "chr1:10-70; red: less likely" in str(canvas.get_attribute("aria-label"))
    # The cursor is at the variant at first, and the arrow keys move it.
    said = figure.get_by_role("status")
    assert re.match(
        r"chr1:40 C; both strands: A .*, G .*, T .* nats; log P, forward: .* nats; "
        r"log P, reverse: .* nats; entropy, forward: .* bits; entropy, reverse: .* bits; "
        r"genes: ABC1 \(-\)$",
        str(said.text_content()),
    )
    canvas.press("Shift+ArrowLeft")
    assert str(said.text_content()).startswith("chr1:30 T;")
    canvas.press("ArrowRight")
    assert "chr1:31 N; no score;" in str(said.text_content())
    canvas.press("End")
    canvas.press("+")
    assert str(said.text_content()).startswith("chr1:70 ")


def test_what_is_saved_is_what_is_answered(shown: Shown, server: Serving, tmp_path: Path) -> None:
    asked = ["chr1-40-C-G", "chr1\t90\trs9\tT\tTA\t.\t.\tX=1", "chr1-7-A-C"]
    shown.score("\n".join(asked))
    rows = server.post("/v1/variants", variants=asked)["variants"]
    lines = [line.split("\t") for line in shown.saved("Download TSV").read_text().splitlines()]
    header = lines.pop(0)
    assert header[:6] == ["chrom", "pos", "id", "ref", "alt", "EVO2_DELTA"]
    for line, row in zip(lines, rows, strict=True):
        for name, text in zip(header, line, strict=True):
            value = row[name]
            assert text == cell(value) or float(text) == value  # -1.0 is -1 in JavaScript
    path = tmp_path / "x.vcf"
    path.write_bytes(shown.saved("Download VCF").read_bytes())
    with pysam.VariantFile(str(path)) as file:
        for record, row in zip(file, rows, strict=True):
            assert (record.chrom, record.pos, record.ref) == (row["chrom"], row["pos"], row["ref"])
            assert record.info["EVO2_STATUS"] == (row["EVO2_STATUS"],)
            delta = record.info["EVO2_DELTA"][0] if "EVO2_DELTA" in record.info else None
            if row["EVO2_DELTA"] is None:
                assert delta is None
            else:
                assert delta == pytest.approx(row["EVO2_DELTA"], abs=1e-5)
    shown.page.get_by_label("Every single-nucleotide").uncheck()
    shown.score("chr1:101-120")
    track = server.post("/v1/track", region="chr1:101-120", strand="rc")
    saved = shown.saved("bedGraph: log P, reverse").read_text().splitlines()
    assert saved == [
        f"chr1\t{at}\t{at + 1}\t{value:.6f}" for at, value in enumerate(track["values"], 100)
    ]
    image = shown.saved("Download PNG").read_bytes()
    assert image.startswith(b"\x89PNG")


def pixels(shown: Shown) -> tuple[Any, float]:
    """The drawing, [height, width, 3], and how many of its pixels are a CSS pixel."""
    image, wide = shown.page.locator("#place canvas").evaluate(
        "canvas => [canvas.toDataURL(), canvas.clientWidth]"
    )
    data = np.asarray(Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))))[..., :3]
    return data, data.shape[1] / wide


def test_red_is_harmful_and_reference_cells_are_blank(shown: Shown, server: Serving) -> None:
    """Of a heat map alone, every cell has the colour of its delta."""
    shown.page.get_by_label("Log-probability of each base").uncheck()
    sequence = GENOME[:20].decode()
    shown.score(sequence)
    rows = server.post("/v1/saturate", sequence=sequence)["variants"]
    data, scale = pixels(shown)
    left, cell = 64, 20
    column = (data.shape[1] / scale - left - 10) / len(sequence)
    for index, base in enumerate("ACGT"):
        y = round((6 + cell * (index + 1) + cell / 2) * scale)
        for at, letter in enumerate(sequence):
            red, _, blue = map(int, data[y, round((left + (at + 0.5) * column) * scale)])
            if letter == base:
                assert (red, blue) == (255, 255)
                continue
            (delta,) = (r["EVO2_DELTA"] for r in rows if (r["pos"], r["alt"]) == (at + 1, base))
            assert abs(delta) < 0.05 or (red > blue) == (delta < 0), (at, base, delta)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_theme(chromium: Any, server: Serving, scheme: str) -> None:
    shown = Shown(chromium, server.url, viewport={"width": 360, "height": 640}, color_scheme=scheme)
    shown.wait_for("#about", "nano")
    shown.page.get_by_label("Every single-nucleotide").uncheck()
    shown.score("chr1:101-200")
    wide = shown.page.evaluate(
        "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    assert wide == 0
    data, _ = pixels(shown)
    corner = data[1, 1].mean()
    assert (corner > 200) if scheme == "light" else (corner < 60)
    shown.page.emulate_media(color_scheme="light" if scheme == "dark" else "dark")
    shown.page.wait_for_timeout(100)
    turned, _ = pixels(shown)
    assert (turned[1, 1].mean() < 60) == (scheme == "light")
    assert shown.problems == []
    shown.context.close()


def test_generation_obeys_and_colours(shown: Shown, server: Serving) -> None:
    """By keyboard alone: from the prompt on, Tab leads to every field, and Enter sends."""
    page = shown.page
    page.get_by_label("Prompt;").focus()
    page.keyboard.type(PROMPT)
    for text in (
        "40",
        "2",
        "5",
        "1",
        "4",
        "1",
    ):  # bases, sequences, seed, temperature, top-k, top-p
        page.keyboard.press("Tab")
        page.keyboard.type(text)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # opens the constraints
    page.keyboard.press("Tab")
    page.keyboard.type("EcoRI TA")
    page.keyboard.press("Enter")
    shown.wait_for("#generate-status", "Done")
    asked = {"tokens": 40, "num_samples": 2, "seed": 5, "forbid": ["EcoRI", "TA"]}
    rows = server.post("/v1/generate", prompt=PROMPT, **asked)["sequences"]
    articles = page.locator("#generated article")
    bounds = [0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9]
    assert articles.count() == 2
    for index, row in enumerate(rows):
        letters = articles.nth(index).locator(".bases")
        assert letters.text_content() == row["sequence"]
        assert "TA" not in row["sequence"]
        levels = []
        for span in letters.locator("span").all():
            name = str(span.get_attribute("class"))
            levels += [int(name.removeprefix("p"))] * len(str(span.text_content()))
        wanted = np.searchsorted(bounds, np.exp(row["logprobs"]), side="right") - 1
        assert levels == wanted.tolist()
    saved = shown.saved("Download FASTA").read_text()
    assert [line for line in saved.splitlines() if line[0] != ">"] == [
        row["sequence"] for row in rows
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rs123", "rs123: is an rs number of dbSNP"),
        ("chr1:9-3", "needs 1 <= from <= to"),
        ("<img src=x onerror=alert(1)>", "<img"),
        ("#only a comment", "paste a variant, a region or a sequence"),
        (">a\nACGT\n>b\nACGT", "paste one sequence at a time"),
    ],
)
def test_a_refusal_is_shown_as_text(shown: Shown, text: str, message: str) -> None:
    shown.page.get_by_label("Variants (").fill(text)
    shown.page.get_by_role("button", name="Score", exact=True).click()
    shown.wait_for("#score-status.error", re.escape(message))
    assert shown.page.locator("img").count() == 0
    assert shown.page.get_by_role("button", name="Score", exact=True).is_enabled()


def test_names_of_genes_and_variants_are_text(shown: Shown) -> None:
    shown.page.get_by_label("Every single-nucleotide").uncheck()
    shown.score(f"chr1\t101\t<b>id</b>\t{chr(GENOME[100])}\tT")
    assert "<b>id</b>" in str(shown.page.locator("#results tbody td").nth(2).text_content())
    said = shown.page.locator("#place [role=status]")
    assert "genes: <b>XYZ2</b> (-)" in str(said.text_content())
    assert shown.page.locator("#results b, #place b").count() == 0


def test_noise_and_percentiles_are_shown(
    chromium: Any, genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(score_background, "NULLS", 20)
    given = {"background": tmp_path / "bg.jsonl", "precision_check": 2}
    with serving(reference=genome, **given) as running:
        shown = Shown(chromium, running.url)
        shown.wait_for("#about", "nano")
        shown.page.get_by_label("Every single-nucleotide").uncheck()
        shown.score("chr1-40-C-G")
        (row,) = running.post("/v1/variants", variants=["chr1-40-C-G"])["variants"]
        heads = shown.page.locator("#results th").all_text_contents()
        cells = shown.page.locator("#results tbody td").all_text_contents()
        percentile = cells[heads.index("EVO2_PCT")]
        assert float(percentile) == pytest.approx(row["EVO2_PCT"], abs=1e-3)
        noise = running.client.get("/v1/metadata").json()["noise"]
        assert f"at most {noise['largest']:.6f} nats" in str(
            shown.page.locator("#results").text_content()
        )
        assert shown.page.locator("#place canvas").count() == 1
        assert shown.problems == []
        shown.context.close()


def test_a_key_is_asked_for(chromium: Any, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("open-sesame\n")
    with serving(api_key_file=tmp_path / "keys") as running:
        shown = Shown(chromium, running.url)
        shown.wait_for("#about", "send a valid key")
        shown.page.get_by_label("Key of this server").fill("open-sesame")
        shown.page.get_by_label("Key of this server").press("Tab")
        shown.wait_for("#about", "nano")
        shown.score("ACGTACGTAA")
        assert "open-sesame" not in json.dumps(shown.context.storage_state())
        assert shown.problems == []
        shown.context.close()
