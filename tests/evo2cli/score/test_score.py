"""`evo2 score`, from files to files."""

import io
import json
import math
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pysam
import pytest
import torch

from evo2cli.errors import TooManySkippedError, UserError
from evo2cli.genome.alphabet import reverse_complement
from evo2cli.genome.fasta import read_records
from evo2cli.genome.vcf import Status, is_scored
from evo2cli.journal import _Journal
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from stripedhyena2 import StripedHyena2, save
from stripedhyena2.errors import NonFiniteError
from stripedhyena2.streaming import MIN_CHUNK, Streaming
from tests.ranks import Hold, World

EXAMPLES = Path(__file__).parents[3] / "examples"
VCF_HEADER = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"


@pytest.fixture
def phix(tmp_path) -> Path:
    """The example VCF beside a copy of its reference, so that no index is left in the checkout."""
    for name in ("phix174.fa", "phix174.vcf"):
        (tmp_path / name).write_bytes((EXAMPLES / name).read_bytes())
    return tmp_path / "phix174.vcf"


def genome() -> str:
    [record] = read_records(EXAMPLES / "phix174.fa")
    return record.sequence.decode().upper()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(source: Path, checkpoint: str, suffix: str = ".jsonl", **options) -> Path:
    output = source.with_name(f"{source.name}.out{suffix}")
    usual = {"device": "cpu", "strand": "fwd", "score": "all"}
    if source.suffix == ".fa":
        del usual["score"]
    score(ScoreOptions(inputs=(source,), model=checkpoint, output=output, **(usual | options)))
    return output


def write_vcf(path: Path, *records: tuple, header: str = VCF_HEADER) -> Path:
    body = (f"{c}\t{p}\t.\t{r}\t{a}\t.\t.\t.\n" for c, p, r, a in records)
    path.write_text(header + "".join(body))
    return path


@torch.inference_mode()
def plain_score(model: StripedHyena2, sequence: str) -> float:
    """The definition: the sum of log-probabilities of all bases but the first."""
    ids = torch.tensor([list(sequence.encode())])
    logprobs = model(ids)[0].double().log_softmax(-1)
    return logprobs[:-1].gather(1, ids[0, 1:, None]).sum().item()


# --- FASTA


def test_fasta_scores_are_the_sum_over_all_but_the_first_base(tmp_path, model, checkpoint):
    source = tmp_path / "some.fa"
    source.write_text(">a x\nACGTacgtNNACU\nGATTACA\n>one\nA\n>none\n>b\nGGCC\n")
    table = rows(run(source, checkpoint))
    assert [row["name"] for row in table] == ["a", "one", "none", "b"]
    assert [row["length"] for row in table] == [20, 1, 0, 4]
    expected = plain_score(model, "ACGTACGTNNACTGATTACA")
    assert table[0]["sum_logprob"] == pytest.approx(expected, abs=1e-4)
    assert table[0]["mean_logprob"] == pytest.approx(expected / 19, abs=1e-5)
    assert [row["sum_logprob"] for row in table[1:3]] == [None, None]
    lines = run(source, checkpoint, ".tsv").read_text().splitlines()
    assert lines[0].split("\t") == ["name", "length", "sum_logprob", "mean_logprob"]
    assert lines[2].split("\t") == ["one", "1", ".", "."]


@pytest.mark.parametrize("strand", ["fwd", "rc"])
def test_a_tag_is_read_but_not_scored(tmp_path, model, checkpoint, strand, monkeypatch):
    tag, sequences = "|D__BACTERIA;S__E COLI|", [genome()[:150], "A"]
    source, tagged = tmp_path / "some.fa", tmp_path / "tagged.fa"
    source.write_text("".join(f">{n}\n{bases}\n" for n, bases in enumerate(sequences)))
    tagged.write_text("".join(f">{n}\n{tag}{bases}\n" for n, bases in enumerate(sequences)))
    expected = []
    for bases in sequences:
        read = bases if strand == "fwd" else reverse_complement(bases.encode()).decode()
        expected.append(plain_score(model, tag + read) - plain_score(model, tag))
    for streaming in (Streaming(), Streaming(7)):
        choose = partial(lambda streaming, *_: streaming, streaming)
        monkeypatch.setattr("stripedhyena2.scoring.choose_streaming", choose)
        table = rows(run(source, checkpoint, tag="d__Bacteria;s__E coli", strand=strand))
        assert [row["sum_logprob"] for row in table] == pytest.approx(expected, abs=1e-3)
        assert [row["length"] for row in table] == [150, 1]
        assert table[0]["mean_logprob"] == pytest.approx(expected[0] / 150, abs=1e-5)
        assert rows(run(tagged, checkpoint, strand=strand)) == table


def test_a_fasta_without_any_score_ends_with_code_3(tmp_path, checkpoint):
    source = tmp_path / "short.fa"
    source.write_text(">a\nA\n>b\n")
    with pytest.raises(TooManySkippedError, match="none of 2 has a score"):
        run(source, checkpoint)
    assert len(rows(source.with_name("short.fa.out.jsonl"))) == 2


def test_a_long_sequence_is_streamed_and_gives_the_whole(
    tmp_path, model, checkpoint, monkeypatch, capsys
):
    source = tmp_path / "long.fa"
    source.write_text(f">long\n{genome()[:700]}\n")
    whole = rows(run(source, checkpoint))[0]["sum_logprob"]
    assert "longer than the context" in capsys.readouterr().err
    assert whole == pytest.approx(plain_score(model, genome()[:700]), abs=1e-3)
    monkeypatch.setattr("stripedhyena2.scoring.CHUNK", 97)
    assert rows(run(source, checkpoint))[0]["sum_logprob"] == pytest.approx(whole, abs=1e-3)


def test_a_sequence_is_scored_within_the_given_memory(tmp_path, checkpoint, model):
    (tmp_path / "long.fa").write_text(f">long\n{genome()}\n")
    [whole] = rows(run(tmp_path / "long.fa", checkpoint))
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    least = Streaming(MIN_CHUNK, offload=True).peak_memory(model.config, len(genome()), 4)
    enough = f"{(weights + least) / 2**20 + 0.01:.2f}M"
    [found] = rows(run(tmp_path / "long.fa", checkpoint, max_memory=enough))
    assert found["sum_logprob"] == pytest.approx(whole["sum_logprob"], abs=1e-2)
    with pytest.raises(
        UserError,
        match=r"long\.fa: 5,386 tokens need 11 MiB with the weights, .* are 1; raise max_memory",
    ):
        run(tmp_path / "long.fa", checkpoint, max_memory="1M")


def test_the_other_strand_is_the_reverse_complement(tmp_path, checkpoint):
    forward, reverse = tmp_path / "forward.fa", tmp_path / "reverse.fa"
    bases = genome()[:200].encode()
    forward.write_bytes(b">s\n" + bases + b"\n")
    reverse.write_bytes(b">s\n" + reverse_complement(bases) + b"\n")
    other = rows(run(forward, checkpoint, strand="rc"))
    assert other == rows(run(reverse, checkpoint))
    both = rows(run(forward, checkpoint, strand="both"))[0]["sum_logprob"]
    one = rows(run(forward, checkpoint))[0]["sum_logprob"]
    assert both == pytest.approx((one + other[0]["sum_logprob"]) / 2, abs=1e-5)


# --- VCF: numbers


@pytest.mark.parametrize("strand", ["fwd", "rc"])
def test_shared_prefixes_give_what_whole_windows_give(phix, model, checkpoint, strand):
    table = rows(run(phix, checkpoint, strand=strand, window=200))
    bases, num_scored = genome(), 0
    for row in table:
        if row["EVO2_DELTA"] is None:
            continue
        num_scored += 1
        start, end, at = row["window_start"], row["window_end"], row["pos"] - 1
        applied = bases[:at] + row["alt"] + bases[at + len(row["ref"]) :]
        left = start
        if start + 200 > len(applied):  # a deletion or insertion at the right end
            left = len(applied) - 200
        windows = bases[start:end], applied[left : left + 200]
        if strand == "rc":
            windows = [reverse_complement(w.encode()).decode() for w in windows]
        reference, alternate = (plain_score(model, window) for window in windows)
        assert row["EVO2_REF"] == pytest.approx(reference, abs=1e-4)
        assert row["EVO2_ALT"] == pytest.approx(alternate, abs=1e-4)
        assert row["EVO2_DELTA"] == pytest.approx(alternate - reference, abs=1e-4)
    assert num_scored == len(table) - 2


def test_scores_depend_on_nothing_but_the_record(phix, checkpoint):
    header, *records = phix.read_text().split("\tINFO\n")
    lines = records[0].splitlines(keepends=True)
    together = {(r["pos"], r["alt"]): r for r in rows(run(phix, checkpoint))}
    for chosen in (lines[::-1], lines[1::2] + lines[::2], lines[:3], lines[5:6]):
        phix.write_text(header + "\tINFO\n" + "".join(chosen))
        for row in rows(run(phix, checkpoint)):
            assert row == together[row["pos"], row["alt"]]


def test_both_strands_are_kept_and_averaged(phix, checkpoint):
    both = rows(run(phix, checkpoint, strand="both", window=64))
    forward = rows(run(phix, checkpoint, strand="fwd", window=64))
    reverse = rows(run(phix, checkpoint, strand="rc", window=64))
    assert "EVO2_FWD" not in forward[0]
    for b, f, r in zip(both, forward, reverse, strict=True):
        assert (b["EVO2_FWD"], b["EVO2_RC"]) == (f["EVO2_DELTA"], r["EVO2_DELTA"])
        if b["EVO2_DELTA"] is not None:
            mean = (f["EVO2_DELTA"] + r["EVO2_DELTA"]) / 2
            assert b["EVO2_DELTA"] == pytest.approx(mean, abs=2e-6)


def test_every_kind_of_allele_has_its_status(tmp_path, checkpoint):
    (tmp_path / "g.fa").write_text(f">1\n{genome()[:600]}\n>MT\n{'N' * 20}{genome()[:100]}\n")
    source = write_vcf(
        tmp_path / "kinds.vcf",
        ("chr1", 300, genome()[299].lower(), "A,C,G,T,<DEL>,*,.,A[1:5[,AX,N".replace("X", "1")),
        ("1", 3, genome()[2], "A"),
        ("1", 601, "A", "C"),
        ("1", 0, "N", "C"),
        ("2", 5, "A", "C"),
        ("1", 300, ".", "C"),
        ("1", 300, "ACGT"["ACGT".index(genome()[299]) - 1], "C"),
        ("1", 300, "ACGT"["ACGT".index(genome()[299]) - 1], genome()[299]),
        ("1", 300, genome()[299:400], "A"),
        ("chrM", 21, genome()[0], "C"),
    )
    options = {"window": 40, "on_ref_mismatch": "swap"}
    table = rows(run(source, checkpoint, reference=tmp_path / "g.fa", **options))
    assert [row["EVO2_STATUS"] for row in table] == [
        *["OK"] * 4,
        *["SYMBOLIC", "STAR", "NO_ALT", "BREAKEND", "INVALID_ALLELE", "AMBIGUOUS_ALLELE"],
        "EDGE",
        "OUT_OF_RANGE",
        "OUT_OF_RANGE",
        "CONTIG_MISSING",
        "INVALID_ALLELE",
        "REF_MISMATCH",
        "SWAPPED",
        "TOO_LONG",
        "NONACGT",
    ]
    assert {word for row in table for word in row["EVO2_STATUS"].split("&")} == (
        set(Status) - {Status.NOISE, Status.NOT_SNV, Status.NO_CONTEXT}
    )
    for row in table:
        scored = is_scored(row["EVO2_STATUS"])
        assert (row["EVO2_DELTA"] is not None) == scored
        assert bool(row["EVO2_NONACGT"]) == ("NONACGT" in row["EVO2_STATUS"])
        assert (row["window_start"] is not None) == scored
        if row["ref"].upper() == row["alt"]:
            assert row["EVO2_DELTA"] == 0


@pytest.mark.parametrize("by", [-1, 1])
def test_positions_that_are_all_off_by_one_cause_a_warning(tmp_path, checkpoint, capsys, by):
    (tmp_path / "g.fa").write_text(f">1\n{genome()[:400]}\n")
    sites = [at for at in range(100, 300, 9) if genome()[at] != genome()[at - by]][:6]
    records = [("1", at + 1 - by, genome()[at], "ACGT".replace(genome()[at], "")) for at in sites]
    asked = {"reference": tmp_path / "g.fa", "window": 32}
    table = tmp_path / "x.tsv"
    lines = [f"{c}\t{p}\t{r}\t{a[0]}\n" for c, p, r, a in records]
    table.write_text("chrom\tpos\tref\talt\n" + "".join(lines))
    vcf = write_vcf(tmp_path / "x.vcf", *((c, p, r, a[0]) for c, p, r, a in records))
    side = "right" if by > 0 else "left"
    for source, way_out in ((table, f"--shift {by}"), (vcf, "POS of a VCF is 1-based")):
        with pytest.raises(TooManySkippedError):
            run(source, checkpoint, **asked)
        told = capsys.readouterr().err
        assert f"REF of every record matches the reference one base to the {side}" in told
        assert way_out in told
        assert "BUILD" not in told
    found = rows(run(table, checkpoint, shift=by, **asked))
    assert [row["pos"] for row in found] == [at + 1 for at in sites]
    assert all(is_scored(row["EVO2_STATUS"]) for row in found)
    with pytest.raises(UserError, match=f"--shift {by}: only for tables"):
        run(vcf, checkpoint, shift=by, **asked)


def test_the_score_of_an_allele_is_the_same_under_every_name_of_its_contig(tmp_path, checkpoint):
    (tmp_path / "g.fa").write_text(f">chr17\n{genome()[:90]}\n>I\n{genome()[90:200]}\n")
    (tmp_path / "names.txt").write_text("# UCSC, RefSeq\nchrI\tNC_001133.9\n")

    def deltas(*contigs: str) -> list[tuple]:
        sites = [
            (name, at, genome()[by + at - 1], "N")
            for name, at, by in zip(contigs, (40, 50), (0, 90), strict=True)
        ]
        sites = [(c, p, r, "T" if r != "T" else "G") for c, p, r, _ in sites]
        source = write_vcf(tmp_path / "x.vcf", *sites)
        names = {"contig_names": tmp_path / "names.txt", "bed": tmp_path / "x.bed"}
        (tmp_path / "x.bed").write_text("NC_000017.11\t0\t90\nchrI\t0\t90\n")
        found = rows(run(source, checkpoint, window=32, reference=tmp_path / "g.fa", **names))
        assert [row["chrom"] for row in found] == list(contigs)
        return [(row["EVO2_DELTA"], row["EVO2_STATUS"]) for row in found]

    expected = deltas("chr17", "I")
    assert all(is_scored(status) for _, status in expected)
    assert deltas("NC_000017.10", "NC_001133.9") == deltas("CM000679.2", "chrI") == expected


def test_the_warning_of_an_allele_written_as_a_dash_shows_the_anchored_form(
    tmp_path, checkpoint, capsys
):
    bases = genome()[:100]
    (tmp_path / "g.fa").write_text(f">1\n{bases}\n")
    source, asked = tmp_path / "x.csv", {"reference": tmp_path / "g.fa", "window": 32}
    for row, advice in (
        ("50,-,AC", f"1:50 ->AC is 1:50 {bases[49]}>{bases[49]}AC"),
        (f"50,{bases[49:51]},-", f">- is 1:49 {bases[48:51]}>{bases[48]}"),
    ):
        source.write_text(f"chrom,pos,ref,alt\n1,{row}\n")
        with pytest.raises(TooManySkippedError):
            run(source, checkpoint, **asked)
        assert advice in capsys.readouterr().err


def test_a_variant_longer_than_a_file_name_is_scored(tmp_path, checkpoint):
    (tmp_path / "g.fa").write_text(f">1\n{genome()[:2000]}\n")
    output = tmp_path / "x.jsonl"
    named = f"1-501-{genome()[500:800]}-{genome()[500]}"
    asked = {"reference": tmp_path / "g.fa", "output": output, "window": 800, "device": "cpu"}
    score(ScoreOptions(inputs=(named,), model=checkpoint, **asked))
    assert [row["EVO2_STATUS"] for row in rows(output)] == ["OK"]


def test_windows_have_ref_where_the_genome_has_an_ambiguity_code(tmp_path, checkpoint):
    bases = genome()[:200]
    records = [("1", 101, "A", "G"), ("1", 101, "A", "AT"), ("1", 100, bases[99] + "A", "C")]
    found = []
    for code in "AR":
        path = tmp_path / "g.fa"
        path.write_text(f">1\n{bases[:100]}{code}{bases[101:]}\n")
        ours = write_vcf(tmp_path / "x.vcf", *records)
        for windows in ("centred", "anchored"):
            options = {"window": 64, "strand": "both", "windows": windows, "score": "all"}
            found.append(rows(run(ours, checkpoint, reference=path, **options)))
    assert found[:2] == found[2:]


def test_the_number_of_non_acgt_letters_is_written(tmp_path, checkpoint):
    bases = genome()[:400]
    reference = tmp_path / "g.fa"
    reference.write_text(f">1\n{bases[:50]}N{bases[51:300]}{'N' * 100}\n")
    source = write_vcf(
        tmp_path / "x.vcf",
        ("1", 71, bases[70], "ACGT".replace(bases[70], "")[0]),
        ("1", 299, bases[298], f"{'ACGT'.replace(bases[298], '')[0]},<DEL>"),
        ("1", 200, bases[199], "ACGT".replace(bases[199], "")[0]),
    )
    table = rows(run(source, checkpoint, reference=reference, window=64))
    assert [row["EVO2_NONACGT"] for row in table] == [1, 30, None, 0]
    lines = run(source, checkpoint, ".vcf", reference=reference, window=64).read_text().splitlines()
    told = [
        dict(f.partition("=")[::2] for f in line.split("\t")[7].split(";")) for line in lines[-3:]
    ]
    assert [info.get("EVO2_NONACGT") for info in told] == ["1", "30,.", None]


def test_a_swapped_record_has_the_negated_scores_of_the_right_one(phix, checkpoint):
    lines = phix.read_text().splitlines(keepends=True)
    header = "".join(line for line in lines if line.startswith("#"))
    records = [line.split("\t") for line in lines if not line.startswith("#")]
    snvs = [r for r in records if len(r[3]) == len(r[4]) == 1 and "ref_mismatch" not in r[7]][:4]
    right = rows(run(write_vcf(phix, *((r[0], r[1], r[3], r[4]) for r in snvs), header=header),
                     checkpoint, strand="both"))  # fmt: skip
    wrong = write_vcf(phix, *((r[0], r[1], r[4], r[3]) for r in snvs), header=header)
    with pytest.raises(TooManySkippedError, match="nothing could be scored: none of 4"):
        run(wrong, checkpoint)
    assert {row["EVO2_STATUS"] for row in rows(phix.with_name(f"{phix.name}.out.jsonl"))} == {
        "REF_MISMATCH"
    }
    swapped = rows(run(wrong, checkpoint, strand="both", on_ref_mismatch="swap"))
    for one, other in zip(right, swapped, strict=True):
        assert other["EVO2_STATUS"] == one["EVO2_STATUS"].removeprefix("OK") + (
            "SWAPPED" if one["EVO2_STATUS"] == "OK" else "&SWAPPED"
        )
        assert (other["EVO2_REF"], other["EVO2_ALT"]) == (one["EVO2_ALT"], one["EVO2_REF"])
        for field in ("EVO2_DELTA", "EVO2_FWD", "EVO2_RC"):
            assert other[field] == -one[field]


# --- VCF: text


def test_the_annotated_vcf_is_the_input_plus_our_fields_and_pysam_reads_it(phix, checkpoint):
    output = run(phix, checkpoint, ".vcf", strand="both")
    kept = []
    for line in output.read_text().splitlines():
        if line.startswith(("##evo2", "##INFO=<ID=EVO2_")):
            continue
        if not line.startswith("#"):
            columns = line.split("\t")
            fields = [f for f in columns[7].split(";") if not f.startswith("EVO2_")]
            line = "\t".join([*columns[:7], ";".join(fields) or "."])
        kept.append(line)
    assert "\n".join(kept) + "\n" == phix.read_text()
    with pysam.VariantFile(str(output)) as file:
        table = rows(run(phix, checkpoint, strand="both"))
        alleles = [
            (info["EVO2_STATUS"][i], info["EVO2_DELTA"][i])
            for info in (record.info for record in file)
            for i in range(len(info["EVO2_STATUS"]))
        ]
    assert [status for status, _ in alleles] == [row["EVO2_STATUS"] for row in table]
    for (_, delta), row in zip(alleles, table, strict=True):
        assert delta == (None if row["EVO2_DELTA"] is None else pytest.approx(row["EVO2_DELTA"]))
    assert str(phix.parent) not in output.read_text()


def test_all_formats_have_the_same_values(phix, checkpoint):
    plain, packed = (run(phix, checkpoint, suffix) for suffix in (".vcf", ".vcf.gz"))
    with pysam.BGZFile(str(packed)) as file:
        assert file.read() == plain.read_bytes()
    header, *lines = run(phix, checkpoint, ".tsv").read_text().splitlines()
    columns = header.removeprefix("#").split("\t")
    for line, row in zip(lines, rows(run(phix, checkpoint)), strict=True):
        told = dict(zip(map(str.lower, columns), line.split("\t"), strict=True))
        assert told["pos"] == str(row["pos"])
        assert told["evo2_status"] == row["EVO2_STATUS"]
        if row["EVO2_DELTA"] is not None:
            assert float(told["evo2_delta"]) == row["EVO2_DELTA"]


def test_every_file_of_the_zoo_gives_an_output_or_a_one_line_error(
    shared, tmp_path, checkpoint, capsys
):
    zoo = shared / "data" / "zoo"
    reference = tmp_path / "norm.fa"
    reference.write_bytes((zoo / "vcf_ref" / "norm.fa").read_bytes())
    num_scored = 0
    for source in sorted([*(zoo / "vcf").iterdir(), *(zoo / "fasta").iterdir()]):
        if source.stat().st_size > 20_000:
            continue
        only_vcf = {"reference": reference, "window": 16} if source.parent.name == "vcf" else {}
        try:
            score(ScoreOptions(inputs=(source,), model=checkpoint, device="cpu", **only_vcf))
            assert "scored" in capsys.readouterr().err
            num_scored += 1
        except TooManySkippedError:  # of another genome; written all the same
            num_scored += 1
        except UserError as error:
            one_line = str(error)
            assert source.name in one_line, one_line
            assert "\n" not in one_line
    assert num_scored > 40


def test_a_scored_vcf_is_refused(phix, checkpoint):
    with pytest.raises(UserError, match="EVO2_"):
        run(run(phix, checkpoint, ".vcf"), checkpoint)


# --- errors and policies


def test_invalid_options_are_refused_in_one_line(phix, checkpoint, tmp_path):
    good = ScoreOptions(inputs=(phix,), model=checkpoint)
    for change in (
        {"window": 1},
        {"strand": "forward"},
        {"on_ref_mismatch": "fix"},
        {"limit": 0},
        {"max_skipped": 2.0},
        {"max_skipped": math.nan},
        {"output": phix},
        {"output": tmp_path / "no" / "x.vcf"},
    ):
        with pytest.raises(UserError, match=r"^--[^\n]+$"):
            replace(good, **change)
    for change in ({"output": tmp_path / "x.txt"}, {"output": tmp_path / "x.vcf", "json": True}):
        with pytest.raises(UserError, match="suffix"):
            score(replace(good, **change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"@r\nACGT\n+\nIIII\n", "FASTQ"),
        (b"BCF\2\2rest", "damaged"),
        (b"\x00\x01\x02", "binary"),
        (b"chr1\t5\t.\tA\tC\t.\t.\t.\n", "is a VCF without its header"),
        (b"chr1\t5\tA\tC\n", "is a table whose first line does not name its columns"),
        (b"Hugo_Symbol\tChromosome\tStart_Position\n", "is a MAF of mutations"),
        (b"chromosome,position (hg19),reference,alt\n", "rename them to chrom, pos, ref, alt"),
        (b"accession,hgvs_nt,score\n", "is a table of MaveDB"),
        (b"mutant,mutated_sequence,DMS_score\n", "evo2 eval dms scores it"),
        (b"PK\3\4\x14\0[Content_Types].xml", "is an Excel workbook; save its sheet as CSV"),
        (b"PK\3\4\x14\0other", "is a zip"),
        (b"##gff-version 3\n", "is a GFF"),
        (b"chr1\thavana\tgene\t-15\t90\t.\t+\t.\tID=g\n", "is a GFF"),
        (b"chr1\t1000\t6\t80\t81\n", "is the index of a FASTA"),
        (b"chr1\t5\t90\tgene\t0\t+\n", "is a BED"),
        (b"chr1\t5\t5\tA\tC\n", "is a table whose first line does not name its columns"),
        (b"hello\n", "is not FASTA: it starts with 'hello'"),
        (b">p\nMSEQLLPK\n", "record 'p'"),
    ],
)
def test_the_format_of_an_unusable_file_is_named(tmp_path, checkpoint, content, message):
    source = tmp_path / "input"
    source.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        score(ScoreOptions(inputs=(source,), model=checkpoint))
    assert str(source) in str(caught.value)


def test_the_reference_comes_from_the_option_or_from_the_header(tmp_path, phix, checkpoint):
    found = run(phix, checkpoint).read_bytes()
    elsewhere = tmp_path / "else where.fa"
    (tmp_path / "phix174.fa").rename(elsewhere)
    with pytest.raises(UserError, match="--reference"):
        run(phix, checkpoint)
    assert run(phix, checkpoint, reference=elsewhere).read_bytes() == found
    text = phix.read_text()
    phix.write_text(text.replace("##reference=phix174.fa", f"##reference={elsewhere.as_uri()}"))
    assert run(phix, checkpoint).read_bytes() == found
    phix.write_text(text.replace("##reference=phix174.fa\n", ""))
    with pytest.raises(UserError, match="--reference"):
        run(phix, checkpoint)


def test_a_mismatch_can_be_an_error_and_many_cause_a_warning(phix, checkpoint, capsys):
    text = phix.read_text()
    run(phix, checkpoint)
    assert "BUILD" not in capsys.readouterr().err
    denied = next(line for line in text.splitlines() if "ref_mismatch" in line)
    phix.write_text(text + 4 * f"{denied}\n")
    run(phix, checkpoint)
    assert "BUILD" in capsys.readouterr().err
    phix.write_text(text)
    with pytest.raises(UserError, match=r"NC_001422\.1:2000 A>C"):
        run(phix, checkpoint, ".tsv", on_ref_mismatch="error")
    assert not phix.with_name("phix174.vcf.out.tsv").exists()


def test_too_many_skipped_is_an_error_after_the_output_is_complete(phix, checkpoint):
    whole = run(phix, checkpoint, max_skipped=0.05).read_bytes()
    phix.with_name("phix174.vcf.out.jsonl").unlink()
    with pytest.raises(TooManySkippedError) as caught:
        run(phix, checkpoint, max_skipped=0.04)
    assert caught.value.exit_code == 3
    assert phix.with_name("phix174.vcf.out.jsonl").read_bytes() == whole


def test_the_error_of_a_non_finite_score_names_record_and_layer(phix, model, tmp_path):
    broken = StripedHyena2(model.config)
    broken.load_state_dict(model.state_dict())
    with torch.no_grad():
        broken.blocks[2].mlp.up.weight.fill_(math.nan)
    save(broken, tmp_path / "broken", {})
    with pytest.raises(NonFiniteError, match=r"NC_001422.1:222 C>T.*blocks\.2"):
        run(phix, str(tmp_path / "broken"))
    assert not phix.with_name("phix174.vcf.out.jsonl").exists()


@pytest.mark.slow
def test_kill_9_leaves_no_half_output_and_the_rerun_gives_the_same_bytes(phix, checkpoint):
    whole = run(phix, checkpoint, ".vcf").read_bytes()
    output = phix.with_name("killed.vcf")
    command = ["score", str(phix), "--model", checkpoint, "-O", str(output)]
    command += ["--strand", "fwd", "--score", "all"]
    killed = World(1, phix.parent, "killed", command, Hold(_Journal, "recall", call=20))
    journal = output.with_name(f"{output.name}.journal")
    assert killed.end_held(signal.SIGKILL) == [-signal.SIGKILL]
    assert journal.exists()
    assert not output.exists()
    codes, said = World(1, phix.parent, "again", command).finish()
    assert codes == [0], said
    assert "resumed after 20 results" in said
    assert output.read_bytes() == whole
    assert not journal.exists()


def test_stdin_and_stdout_give_the_same_bytes(phix, checkpoint, monkeypatch, capsysbinary):
    whole = run(phix, checkpoint, ".vcf").read_bytes()
    stdin = io.TextIOWrapper(io.BufferedReader(io.BytesIO(phix.read_bytes())))
    monkeypatch.setattr("sys.stdin", stdin)
    reference = phix.with_name("phix174.fa")
    score(
        ScoreOptions(
            inputs=("-",),
            model=checkpoint,
            reference=reference,
            device="cpu",
            strand="fwd",
            score="all",
        )
    )
    assert capsysbinary.readouterr().out == whole


def test_contigs_that_the_genome_lacks_are_named(phix, checkpoint, capsys):
    lines = phix.read_text().splitlines(keepends=True)
    header = "".join(line for line in lines if line.startswith("#"))
    known = next(line for line in lines if not line.startswith("#")).split("\t")
    stranger = ("chr17", "5", "A", "C")
    run(write_vcf(phix, (*known[:2], *known[3:5]), stranger, header=header), checkpoint)
    told = "the genome has no contig chr17; it has NC_001422.1"
    assert f"warning: {told}" in capsys.readouterr().err
    with pytest.raises(TooManySkippedError, match=f"nothing could be scored: {told}"):
        run(write_vcf(phix, stranger, header=header), checkpoint)
