"""A report shows all variants, or says which; numbers are those of the input; text stays text."""

import base64
import hashlib
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest

from evo2cli.report import collect, saturation
from evo2cli.report.options import ReportOptions
from evo2cli.report.run import report

CommandLine = Callable[..., tuple[int, str, str]]
HEADER = """##fileformat=VCFv4.2
##contig=<ID=chr1,length=5000>
##evo2Model=SML, 5 parameters
##evo2Noise=small
##INFO=<ID=CLASS,Number=1,Type=String,Description="label">
##INFO=<ID=CSQ,Number=.,Type=String,Description="VEP. Format: Allele|Consequence">
##INFO=<ID=EVO2_DELTA,Number=A,Type=Float,Description="d">
##INFO=<ID=EVO2_FWD,Number=A,Type=Float,Description="d">
##INFO=<ID=EVO2_RC,Number=A,Type=Float,Description="d">
##INFO=<ID=EVO2_STATUS,Number=A,Type=String,Description="s">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO
"""
GFF = (
    "chr1\tx\tgene\t101\t400\t.\t+\t.\tID=g1;Name=ONE\n"
    "chr1\tx\tCDS\t201\t300\t.\t+\t.\tParent=g1\n"
    "chr1\tx\tgene\t351\t900\t.\t-\t.\tID=g2;Name=TWO\n"
)
Allele = dict[str, Any]


def draw(count: int, seed: int = 0) -> list[Allele]:
    """Random alleles, some without a score, of all kinds and classes."""
    random_ = random.Random(seed)  # noqa: S311 - no secret
    alleles = []
    for _ in range(count):
        ref = "".join(random_.choices("ACGT", k=random_.choice([1, 1, 1, 2])))
        alt = "".join(random_.choices("ACGT", k=random_.choice([1, 1, 1, 2, 3])))
        is_scored = random_.random() < 0.9
        alleles.append(
            {
                "pos": random_.randrange(1, 1000),
                "ref": ref,
                "alt": alt,
                "delta": round(random_.gauss(-1, 2), 6) if is_scored else None,
                "class": random_.choice(["LOF", "FUNC", None]),
                "effect": random_.choice(["missense_variant", "stop_gained&splice_region_variant"]),
            }
        )
    return alleles


def write_vcf(path: Path, alleles: list[Allele]) -> Path:
    lines = []
    for at, allele in enumerate(alleles):
        delta = "." if allele["delta"] is None else f"{allele['delta']:.6f}"
        info = [f"CLASS={allele['class']}"] if allele["class"] else []
        info += [f"CSQ={allele['alt']}|{allele['effect']}", f"EVO2_DELTA={delta}"]
        info += [f"EVO2_FWD={delta}", f"EVO2_RC={delta}"]
        info += ["EVO2_STATUS=" + ("REF_MISMATCH" if allele["delta"] is None else "OK")]
        cells = ["chr1", allele["pos"], f"id{at}", allele["ref"], allele["alt"], ".", "."]
        lines.append("\t".join(map(str, [*cells, ";".join(info)])))
    path.write_text(HEADER + "\n".join(lines) + "\n")
    return path


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def reported(source: Path, **options: Any) -> dict[str, Any]:
    output = source.with_name("report.html")
    report(ReportOptions(source=source, output=output, **options))
    return data_of(output)


def kind(allele: Allele) -> str:
    growth = len(allele["alt"]) - len(allele["ref"])
    return (
        "insertion"
        if growth > 0
        else "deletion"
        if growth
        else "SNV" * (len(allele["ref"]) == 1) or "MNV"
    )


def test_numbers_are_those_of_the_alleles(tmp_path: Path) -> None:
    alleles = draw(900)
    data = reported(write_vcf(tmp_path / "x.vcf", alleles))
    scored = [allele for allele in alleles if allele["delta"] is not None]
    facts = dict(data["facts"])
    assert (facts["Alleles"], facts["with a score"]) == (900, len(scored))
    assert facts["Lowest EVO2_DELTA, nats"] == min(allele["delta"] for allele in scored)
    assert facts["Model"] == "SML, 5 parameters"
    assert facts["Rounding noise"] == "small"
    assert [row[:2] for row in data["statuses"]] == [
        ["OK", len(scored)],
        ["REF_MISMATCH", 900 - len(scored)],
    ]
    assert "REF is not what the reference has" in data["statuses"][1][2]
    names = {
        "kind of variant": kind,
        "consequence (CSQ)": lambda allele: allele["effect"].partition("&")[0],
        "CLASS": lambda allele: allele["class"] or "none",
    }
    assert [grouping["name"] for grouping in data["groupings"]] == list(names)
    for grouping in data["groupings"]:
        name_of = names[grouping["name"]]
        assert {group["name"] for group in grouping["groups"]} == set(map(name_of, scored))
        for group in grouping["groups"]:
            deltas = [a["delta"] for a in scored if name_of(a) == group["name"]]
            assert group["count"] == len(deltas)
            assert group["quartiles"] == pytest.approx(
                np.percentile(deltas, [0, 25, 50, 75, 100]), abs=1e-6
            )
            assert group["points"] == pytest.approx(sorted(deltas), abs=1e-4) or len(deltas) > 400
            assert group["points"][0] == pytest.approx(min(deltas), abs=1e-4)
            assert group["points"][-1] == pytest.approx(max(deltas), abs=1e-4)
        medians = [group["quartiles"][2] for group in grouping["groups"]]
        assert medians == sorted(medians)
    assert data["regions"] == []
    assert data["rules"]["table"] == ""


@pytest.mark.parametrize("limit", [1, 30, 200])
def test_the_table_holds_the_lowest_deltas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """As one that holds all, cut: unscored alleles are last, and equal ones in their order."""
    alleles = draw(100)
    for allele in alleles[::3]:
        allele["delta"] = -1.0
    source = write_vcf(tmp_path / "x.vcf", alleles)
    whole = reported(source)["table"]
    at = whole["columns"].index("EVO2_DELTA")
    order = sorted(
        range(100),
        key=lambda i: math.inf if alleles[i]["delta"] is None else alleles[i]["delta"],
    )
    assert [row[2] for row in whole["rows"]] == [f"id{index}" for index in order]
    assert [row[at] for row in whole["rows"]] == [alleles[index]["delta"] for index in order]
    monkeypatch.setattr(collect, "MAX_ROWS", limit)
    cut = reported(source)
    assert cut["table"]["rows"] == whole["rows"][:limit]
    # Nothing else depends on the limit.
    assert cut["groupings"] == reported(source)["groupings"]


def test_what_is_left_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_vcf(tmp_path / "x.vcf", draw(300))
    (tmp_path / "g.gff3").write_text(GFF)
    for module in (collect, __import__("evo2cli.report.run", fromlist=["run"])):
        monkeypatch.setattr(module, "MAX_ROWS", 1)
        monkeypatch.setattr(module, "MAX_POINTS", 50)
    data = reported(source, gff=tmp_path / "g.gff3")
    assert data["rules"]["table"].startswith("The 1 alleles with the lowest EVO2_DELTA, of 300 (")
    assert "at most 50 dots" in data["rules"]["points"]
    assert data["rules"]["genes"].endswith("of 2 with a scored allele.")
    assert len(data["genes"]["rows"]) == len(data["table"]["rows"]) == 1
    for grouping in data["groupings"]:
        for group in grouping["groups"]:
            assert len(group["points"]) == min(50, group["count"])


def test_many_groups_are_the_largest_and_the_others(tmp_path: Path) -> None:
    alleles = draw(900)
    for index, allele in enumerate(alleles):
        allele["class"] = f"c{int(math.sqrt(index)) + 10}"
    data = reported(write_vcf(tmp_path / "x.vcf", alleles), group="CLASS")
    (groups,) = (g["groups"] for g in data["groupings"] if g["name"] == "CLASS")
    assert len(groups) == 25 == 1 + sum(g["name"].startswith("c") for g in groups)
    assert sum(group["count"] for group in groups) == sum(a["delta"] is not None for a in alleles)


def test_genes_have_the_alleles_that_overlap_them(tmp_path: Path) -> None:
    alleles = draw(500, seed=1)
    (tmp_path / "g.gff3").write_text(GFF)
    data = reported(write_vcf(tmp_path / "x.vcf", alleles), gff=tmp_path / "g.gff3")
    found = {
        row[0]: dict(zip(data["genes"]["columns"], row, strict=True))
        for row in data["genes"]["rows"]
    }

    def within(first: int, last: int) -> list[float]:
        return [
            allele["delta"]
            for allele in alleles
            if allele["delta"] is not None
            and allele["pos"] <= last
            and allele["pos"] + len(allele["ref"]) - 1 >= first
        ]

    for name, first, last in (("ONE", 101, 400), ("TWO", 351, 900)):
        deltas = within(first, last)
        row = found[name]
        assert (row["from"], row["to"], row["alleles"]) == (first, last, len(deltas))
        assert row["lowest"] == min(deltas)
        assert row["median"] == pytest.approx(float(np.median(deltas)), abs=1e-6)
    assert found["ONE"]["coding"] == len(within(201, 300))
    assert found["ONE"]["lowest coding"] == min(within(201, 300))
    assert (found["TWO"]["coding"], found["TWO"]["lowest coding"]) == (0, None)
    for row, allele in zip(
        sorted(data["table"]["rows"], key=lambda row: int(row[2][2:])), alleles, strict=True
    ):
        end = allele["pos"] + len(allele["ref"]) - 1
        names = [
            n
            for n, a, b in (("ONE", 101, 400), ("TWO", 351, 900))
            if allele["pos"] <= b and end >= a
        ]
        assert row[-1] == ", ".join(names)


def saturated(count: int, seed: int = 2) -> list[Allele]:
    random_ = random.Random(seed)  # noqa: S311 - no secret
    return [
        {"pos": 100 + at, "ref": ref, "alt": alt, "class": None, "effect": "x"}
        | {"delta": round(random_.gauss(-1, 2), 6)}
        for at in range(count)
        for ref in [random_.choice("ACGT")]
        for alt in "ACGT"
        if alt != ref
    ]


def test_a_saturation_has_a_heat_map(tmp_path: Path) -> None:
    alleles = saturated(40)
    alleles = [a for a in alleles if a["pos"] != 110]  # an N of the genome
    alleles[7]["delta"] = None
    (tmp_path / "g.gff3").write_text(GFF)
    (region,) = reported(write_vcf(tmp_path / "x.vcf", alleles), gff=tmp_path / "g.gff3")["regions"]
    place = [region[key] for key in ("name", "start", "end", "step")]
    assert place == ["chr1", 99, 139, 1]
    assert [gene["name"] for gene in region["genes"]] == ["ONE"]
    layers = {layer["label"]: layer["deltas"] for layer in region["layers"]}
    assert list(layers) == ["both strands", "forward strand", "reverse strand"]
    wanted = {(a["pos"], a["alt"]): a["delta"] for a in alleles}
    bases = dict.fromkeys(range(100, 140), ".") | {a["pos"]: a["ref"] for a in alleles}
    assert region["bases"] == "".join(bases[pos] for pos in range(100, 140))
    for base in "ACGT":
        for pos in range(100, 140):
            value = layers["both strands"][base][pos - 100]
            want = wanted.get((pos, base))
            assert value == (None if want is None else pytest.approx(want, abs=5e-4))


def test_regions_are_apart_and_long_ones_share_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alleles = saturated(50)
    for allele in alleles[90:]:
        allele["pos"] += 500
    source = write_vcf(tmp_path / "x.vcf", alleles)
    regions = reported(source)["regions"]
    assert [(r["start"], len(r["bases"])) for r in regions] == [(99, 30), (629, 20)]
    monkeypatch.setattr(saturation, "MAX_COLUMNS", 17)
    data = reported(source)
    assert data["rules"]["regions"] == "Each column is the mean of 3 neighbouring positions."
    places = [(r["step"], len(r["bases"]), r["end"]) for r in data["regions"]]
    assert places == [(3, 10, 129), (3, 7, 649)]
    for base in "ACGT":
        column = data["regions"][0]["layers"][0]["deltas"][base][4]
        deltas = [a["delta"] for a in alleles if 112 <= a["pos"] < 115 and a["alt"] == base]
        assert column == (pytest.approx(np.mean(deltas), abs=1e-3) if deltas else None)


def missing(alleles: list[Allele]) -> list[Allele]:
    return [*alleles[:4], *alleles[5:]]


def cut_off(alleles: list[Allele]) -> list[Allele]:
    return alleles[:-1]


def repeated(alleles: list[Allele]) -> list[Allele]:
    return [*alleles[:4], alleles[3], *alleles[5:]]


def with_deletion(alleles: list[Allele]) -> list[Allele]:
    return [*alleles, alleles[0] | {"ref": "AC", "alt": "A", "pos": 900}]


def with_another_reference(alleles: list[Allele]) -> list[Allele]:
    return [*alleles[:4], alleles[4] | {"ref": "N"}, *alleles[5:]]


@pytest.mark.parametrize(
    "spoil", [missing, cut_off, repeated, with_deletion, with_another_reference]
)
def test_anything_else_is_no_saturation(
    tmp_path: Path, spoil: Callable[[list[Allele]], list[Allele]]
) -> None:
    assert reported(write_vcf(tmp_path / "x.vcf", spoil(saturated(10))))["regions"] == []


def test_every_format_gives_the_same_report(tmp_path: Path) -> None:
    """VCF, the same in BCF, and a table with the same columns."""
    alleles = [allele | {"class": allele["class"] or "OTHER"} for allele in draw(120)]
    source = write_vcf(tmp_path / "x.vcf", alleles)
    wanted = reported(source)
    with (
        pysam.VariantFile(str(source)) as file,
        pysam.VariantFile(str(tmp_path / "x.bcf"), "wb", header=file.header) as bcf,
    ):
        for record in file:
            bcf.write(record)
    found = reported(tmp_path / "x.bcf")
    assert [row[2] for row in found["table"]["rows"]] == [row[2] for row in wanted["table"]["rows"]]
    assert [g["name"] for g in found["groupings"]] == [g["name"] for g in wanted["groupings"]]
    at = wanted["table"]["columns"].index("EVO2_DELTA")
    header = ["#CHROM", "POS", "ID", "REF", "ALT", "EVO2_DELTA", "EVO2_STATUS", "CLASS"]
    lines = ["\t".join(header)]
    for index, allele in enumerate(alleles):
        delta = "." if allele["delta"] is None else f"{allele['delta']:.6f}"
        status = "REF_MISMATCH" if allele["delta"] is None else "OK"
        cells = ["chr1", allele["pos"], f"id{index}", allele["ref"], allele["alt"], delta, status]
        lines.append("\t".join(map(str, [*cells, allele["class"]])))
    (tmp_path / "x.tsv").write_text("\n".join(lines) + "\n")
    table = reported(tmp_path / "x.tsv")
    assert table["statuses"] == wanted["statuses"]
    column = table["table"]["columns"].index("EVO2_DELTA")
    assert [(row[:5], row[column]) for row in table["table"]["rows"]] == [
        (row[:5], row[at]) for row in wanted["table"]["rows"]
    ]
    (labelled,) = (g for g in wanted["groupings"] if g["name"] == "CLASS")
    assert labelled in table["groupings"]


EVIL = "</script><script>alert(1)</script><!--"


def test_text_of_the_input_stays_text(tmp_path: Path) -> None:
    """The only script that the policy lets run is ours, whatever the input holds."""
    alleles = [allele | {"class": EVIL, "effect": EVIL.replace("/", "")} for allele in draw(5)]
    source = write_vcf(tmp_path / f"{EVIL.replace('/', '')}.vcf", alleles)
    data = reported(source)
    text = source.with_name("report.html").read_text()
    assert data["title"] == source.name
    assert "alert(1)" in json.dumps(data["groupings"])
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    assert [attributes for attributes, _ in scripts] == [' type="application/json" id="data"', ""]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    for name, content in (("script-src", scripts[1][1]), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; ")
    assert "connect-src" not in policy[1]


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    source = write_vcf(tmp_path / "x.vcf", draw(5)).rename(tmp_path / os.fsdecode(b"x\xff$y.vcf"))
    assert reported(source)["title"] == "x\ufffd$y.vcf"


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        (
            "x.vcf",
            HEADER + "chr1\t5\t.\tA\tC\t.\t.\tCLASS=x\n",
            (),
            "no record has EVO2_DELTA in IN",
        ),
        ("x.vcf", HEADER, (), "no record has EVO2_DELTA in INFO; score it first"),
        (
            "x.tsv",
            "chrom\tpos\tref\talt\nc\t1\tA\tC\n",
            (),
            "no record has EVO2_DELTA in the table",
        ),
        (
            "x.vcf",
            HEADER + "chr1\t5\t.\tA\tC\t.\t.\tEVO2_DELTA=nan\n",
            (),
            "chr1:5: EVO2_DELTA=nan is",
        ),
        (
            "x.vcf",
            HEADER + "chr1\t5\t.\tA\tC\t.\t.\tEVO2_DELTA=-1e308\n",
            (),
            "chr1:5: EVO2_DELTA=-1e308 is not a finite number of at most 1e+30",
        ),
        (
            "x.vcf",
            HEADER + "chr1\t5\t.\tA\tC\t.\t.\tEVO2_DELTA=1\n",
            ("--group", "Y"),
            "no record has Y in INFO",
        ),
        (
            "x.vcf",
            HEADER,
            ("--consequence", "Y"),
            "no record has Y in INFO, which holds CL",
        ),
        (
            "x.vcf",
            HEADER,
            ("--gff", "x.vcf"),
            "x.vcf: is a VCF, which holds variants; give a GFF3 or GTF file",
        ),
        (
            "x.fa",
            ">a\nACGT\n",
            (),
            "x.fa: is FASTA, which holds sequences; give a VCF or a table of variants",
        ),
        ("x.vcf", HEADER, ("-O", "x.txt"), "--output x.txt: needs the suffix .html"),
        ("x.vcf", HEADER, ("-O", "missing/x.html"), "the folder missing is missing"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command_line: CommandLine,
    name: str,
    content: str,
    words: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(content)
    output = () if "-O" in words else ("-O", "r.html")
    code, out, said = command_line("report", name, *output, *words)
    assert (code, out) == (2, "")
    assert message in said.splitlines()[-1]
    assert "Traceback" not in said
    assert not list(tmp_path.glob("*.html"))


class Opened:
    """A report in a browser without network."""

    def __init__(self, chromium: Any, path: Path, **how: Any) -> None:
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.context = chromium.new_context(offline=True, **how)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())


@pytest.fixture
def opened(chromium: Any, tmp_path: Path) -> Iterator[Opened]:
    (tmp_path / "g.gff3").write_text(GFF)
    alleles = [allele | {"class": f"{EVIL}{at % 3}"} for at, allele in enumerate(saturated(60))]
    source = write_vcf(tmp_path / "x.vcf", alleles)
    reported(source, gff=tmp_path / "g.gff3")
    found = Opened(chromium, tmp_path / "report.html", viewport={"width": 360, "height": 640})
    yield found
    found.context.close()
    assert found.problems == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in found.asked)


def test_a_report_works_in_a_browser_without_network(opened: Opened, tmp_path: Path) -> None:
    page, data = opened.page, data_of(tmp_path / "report.html")
    titles = page.get_by_role("heading", level=2).all_text_contents()
    assert titles == [
        *("Every single-nucleotide variant", "Deltas by group"),
        *("Genes", "Variants", "Statuses"),
    ]
    assert page.evaluate(
        "() => document.documentElement.scrollWidth === document.documentElement.clientWidth"
    )
    rows = page.get_by_role("region", name="EVO2_DELTA in nats").locator("tbody tr")
    assert rows.count() == 50
    assert rows.first.locator("td").nth(2).text_content() == data["table"]["rows"][0][2]
    head = page.get_by_role("button", name="pos", exact=True)
    head.press("Enter")
    assert rows.first.locator("td").nth(1).text_content() == "100"
    head.press("Enter")
    assert rows.first.locator("td").nth(1).text_content() == "159"
    page.get_by_label("Filter").last.fill("id17 chr1")
    found = {row[2] for row in data["table"]["rows"] if "id17" in row[2]}
    assert {row.locator("td").nth(2).text_content() for row in rows.all()} == found
    page.get_by_role("region", name="Deltas by group").get_by_role("combobox").select_option(
        "CLASS"
    )
    figure = page.get_by_role("region", name="Deltas by group").locator("canvas")
    figure.press("ArrowDown")
    said = page.get_by_role("region", name="Deltas by group").get_by_role("status")
    (groups,) = (g["groups"] for g in data["groupings"] if g["name"] == "CLASS")
    assert str(said.text_content()).startswith(f"{groups[0]['name']}: 60 alleles, median ")
    with page.expect_download() as download:
        page.get_by_role("region", name="Genes").get_by_role("button", name="Download TSV").click()
    saved = Path(download.value.path()).read_text().splitlines()
    assert saved[0].split("\t") == data["genes"]["columns"]
    assert saved[1].split("\t")[:5] == ["ONE", "chr1", "101", "400", "+"]
