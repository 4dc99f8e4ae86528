"""Scores of windows are those of whole sequences, whatever else is computed, on either strand."""

import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evo2cli.genome.alphabet import reverse_complement
from evo2cli.genome.reference import Reference
from evo2cli.genome.vcf import read_vcf
from evo2cli.genome.windows import Window
from evo2cli.score.alleles import VariantScorer
from evo2cli.score.options import ScoreOptions
from evo2cli.score.prefixes import Pair, WindowReader
from evo2cli.score.run import score
from stripedhyena2 import StripedHyena2, load, save
from stripedhyena2.packing import Shapes
from stripedhyena2.scoring import sequence_logprob
from tests.evo2cli.score.test_score import VCF_HEADER

CONTIG, WIDTH = 500, 128


@pytest.fixture(scope="module")
def checkpoint(tiny_model: StripedHyena2, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save(tiny_model, folder, {})
    return str(folder)


def letters(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACGT", k=length))  # noqa: S311 - a test


def variants(sequence: str, count: int) -> list[tuple[int, str, str]]:
    """SNVs, MNVs, insertions and deletions all over the contig; positions are 0-based."""
    chance = random.Random(1)  # noqa: S311 - a test
    found = []
    for _ in range(count):
        length = chance.choice([1, 1, 1, 2, 5])
        start = chance.randrange(len(sequence) - length)
        allele = "".join(chance.choices("ACGT", k=chance.choice([1, 1, 1, 3, 6])))
        if allele != sequence[start : start + length]:
            found.append((start, sequence[start : start + length], allele))
    return sorted(found)


def write(folder: Path, sequence: str, records: list[tuple[int, str, str]]) -> Path:
    (folder / "one.fa").write_text(f">one\n{sequence}\n")
    body = "".join(f"one\t{at + 1}\t.\t{ref}\t{alt}\t.\t.\t.\n" for at, ref, alt in records)
    (folder / "x.vcf").write_text(VCF_HEADER + body)
    return folder / "x.vcf"


def run(source: Path, checkpoint: str, **options: str) -> list[dict[str, float]]:
    output = source.with_name("x.jsonl")
    score(
        ScoreOptions(
            inputs=(source,),
            model=checkpoint,
            output=output,
            reference=source.with_name("one.fa"),
            device="cpu",
            dtype="fp64",
            window=WIDTH,
            **({"strand": "fwd", "score": "all"} | options),
        )
    )
    return [json.loads(line) for line in output.read_text().splitlines()]


SHAPES = [Shapes(0), Shapes(2048)]  # one at a time, and in batches
each_shapes = pytest.mark.parametrize("shapes", SHAPES, ids=["one at a time", "batched"])
both_kinds = pytest.mark.parametrize("is_anchored", [False, True], ids=["centred", "anchored"])


def single_precision(model: StripedHyena2) -> StripedHyena2:
    narrow = StripedHyena2(model.config).eval()
    narrow.load_state_dict(model.state_dict())
    return narrow


def snv(genome: bytes, start: int, at: int, end: int, letter: bytes) -> tuple[Window, Window]:
    """The windows from `start` to `end` with the genome's base at `at`, and with another."""
    reference = Window(genome[start:at], genome[at : at + 1], genome[at + 1 : end])
    return reference, Window(reference.before, letter, reference.after)


@settings(max_examples=12)
@given(st.data())
def test_any_windows_in_any_order_have_their_log_likelihoods(
    tiny_model: StripedHyena2, data: st.DataObject
) -> None:
    """In batches of any size, with any prefixes in the cache, and wherever windows differ."""
    reader = WindowReader(
        tiny_model,
        data.draw(st.sampled_from([128, 300, 640])),
        is_anchored=data.draw(st.booleans()),
        shapes=data.draw(st.sampled_from(SHAPES)),
    )
    genome = letters(900).encode()
    for _ in range(data.draw(st.integers(1, 3))):
        asked: list[tuple[Pair, Window, Window]] = []
        for _ in range(data.draw(st.integers(1, 6))):
            start, before = data.draw(st.sampled_from([0, 32, 64])), data.draw(st.integers(0, 400))
            at, after = start + before, data.draw(st.integers(0, 300))
            reference = Window(
                genome[start:at], genome[at : at + 1], genome[at + 1 : at + 1 + after]
            )
            moved = data.draw(st.sampled_from([0, 0, 0, 3]))  # bases on the left of ALT's window
            alternate = Window(
                reference.before[moved:], data.draw(st.sampled_from([b"A", b"GT"])), reference.after
            )
            asked.append((reader.windows(reference, alternate), reference, alternate))
        reader.packer.read().collect()
        for pair, *windows in asked:
            expected = [
                sequence_logprob(tiny_model, window.sequence) if len(window.sequence) > 1 else 0
                for window in windows
            ]
            assert pair.logprobs == pytest.approx(expected, rel=0, abs=1e-8)


def test_a_sequence_that_is_a_prefix_of_the_other_has_its_log_likelihood(
    tiny_model: StripedHyena2,
) -> None:
    """Tables may hold such pairs."""
    whole = letters(200).encode()
    for shapes in SHAPES:
        reader = WindowReader(tiny_model, 200, is_anchored=False, shapes=shapes)
        pair = reader.windows(Window(whole, b"G", b""), Window(whole, b"", b""))
        reader.packer.read().collect()
        expected = [sequence_logprob(tiny_model, each) for each in (whole + b"G", whole)]
        assert pair.logprobs == pytest.approx(expected, rel=0, abs=1e-8)


@each_shapes
@both_kinds
def test_a_base_given_those_before_it_is_the_last_term_of_its_sequence(
    tiny_model: StripedHyena2, is_anchored: bool, shapes: Shapes
) -> None:
    genome = letters(600).encode()
    reader = WindowReader(tiny_model, 400, is_anchored=is_anchored, shapes=shapes)
    ats = (1, 70, 200, 201, 333)
    pairs = [reader.next_base(*snv(genome, 0, at, 400, b"C")) for at in ats]
    reader.packer.read().collect()
    for at, pair in zip(ats, pairs, strict=True):
        found = zip(pair.lasts, (genome[at : at + 1], b"C"), strict=True)
        before = sequence_logprob(tiny_model, genome[:at]) if at > 1 else 0
        for value, letter in found:
            whole = sequence_logprob(tiny_model, genome[:at] + letter)
            assert value == pytest.approx(whole - before, rel=0, abs=1e-8)


@each_shapes
@both_kinds
def test_windows_have_the_same_bits_in_any_batch(
    tiny_model: StripedHyena2, is_anchored: bool, shapes: Shapes
) -> None:
    """In fp32: alone, with others in any order, after neighbours, and after another site."""
    model, genome = single_precision(tiny_model), letters(900).encode()
    starts, ats = (64, 320), range(330, 420, 7)
    sites = [(start, at, letter) for start in starts for at in ats for letter in (b"G", b"A")]
    asked = [snv(genome, start, at, start + 400, letter) for start, at, letter in sites]

    def reader() -> WindowReader:
        return WindowReader(model, 400, is_anchored=is_anchored, shapes=shapes)

    def scores(reader: WindowReader, wanted: list[tuple[Window, Window]]) -> list[object]:
        pairs = [reader.windows(*windows) for windows in wanted]
        reader.packer.read().collect()
        return [pair.logprobs for pair in pairs]

    together = scores(reader(), asked)
    backwards = scores(reader(), asked[::-1])[::-1]
    busy = reader()
    in_turn = [scores(busy, [windows])[0] for windows in asked[::3]]
    alone = [scores(reader(), [windows])[0] for windows in asked[::9]]
    assert backwards == together
    assert in_turn == together[::3]
    assert alone == together[::9]


@both_kinds
def test_the_number_of_threads_changes_at_most_the_last_digits(
    tiny_model: StripedHyena2, is_anchored: bool
) -> None:
    """As docs/variants.md says. With the same number of threads, all bits are the same."""
    model, genome = single_precision(tiny_model), letters(128).encode()

    def scores(threads: int) -> tuple[float, float]:
        torch.set_num_threads(threads)
        reader = WindowReader(model, 128, is_anchored=is_anchored)
        pair = reader.windows(*snv(genome, 0, 70, 128, b"G"))
        reader.packer.read().collect()
        return pair.logprobs

    before = torch.get_num_threads()
    try:
        one, two, again = scores(1), scores(2), scores(1)
    finally:
        torch.set_num_threads(before)
    assert again == one
    assert two == pytest.approx(one, rel=0, abs=1e-4)


def test_neighbours_are_computed_once(tiny_model: StripedHyena2) -> None:
    """One at a time: the reference window once, and for each allele the bases after it."""
    genome = letters(300).encode()
    reader = WindowReader(tiny_model, 256, is_anchored=True)
    for at in range(130, 150):
        for letter in b"AC":
            reader.windows(*snv(genome, 0, at, 256, bytes([letter])))
            reader.packer.read().collect()
    suffixes = 2 * sum(256 - at for at in range(130, 150))
    sites = sum(at - 128 for at in range(130, 150))  # fewer than a piece behind half a window
    assert reader.packer.num_bases == 256 + sites + suffixes


def test_a_site_is_computed_once_even_with_one_record_per_allele(tiny_model: StripedHyena2) -> None:
    genome = letters(300).encode()
    reader = WindowReader(tiny_model, 256, is_anchored=False)
    for letter in (b"A", b"C", b"G", b"T"):
        if letter != genome[128:129]:
            reader.windows(*snv(genome, 0, 128, 256, letter))
            reader.packer.read().collect()
    assert reader.packer.num_bases == 128 + 4 * 128


@pytest.mark.parametrize("strand", ["fwd", "rc", "both"])
def test_anchored_scores_are_those_of_their_windows(
    tmp_path: Path, tiny_model: StripedHyena2, checkpoint: str, strand: str
) -> None:
    sequence = letters(CONTIG)
    records = variants(sequence, 16)
    table = run(write(tmp_path, sequence, records), checkpoint, windows="anchored", strand=strand)
    for row, (at, ref, alt) in zip(table, records, strict=True):
        start, end = row["window_start"], row["window_end"]
        assert end - start == WIDTH
        assert start <= at <= at + len(ref) <= end
        if strand == "both":
            assert row["EVO2_DELTA"] == pytest.approx(
                (row["EVO2_FWD"] + row["EVO2_RC"]) / 2, abs=2e-6
            )
            continue
        context = at - start if strand == "fwd" else end - at - len(ref)
        assert context >= WIDTH // 2 or row["EVO2_STATUS"] == "EDGE"
        read = sequence[start:end].encode()
        applied = sequence[:at] + alt + sequence[at + len(ref) :]
        growth = len(alt) - len(ref)
        if strand == "fwd":
            left = min(start, len(applied) - WIDTH)
        else:
            left = max(start + growth, 0)
            read = reverse_complement(read)
        changed = applied[left : left + WIDTH].encode()
        changed = changed if strand == "fwd" else reverse_complement(changed)
        if row["EVO2_STATUS"] == "OK":
            assert row["EVO2_REF"] == pytest.approx(sequence_logprob(tiny_model, read), abs=1e-5)
            assert row["EVO2_ALT"] == pytest.approx(sequence_logprob(tiny_model, changed), abs=1e-5)
        assert row["EVO2_DELTA"] == pytest.approx(row["EVO2_ALT"] - row["EVO2_REF"], abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("windows", ["centred", "anchored"])
def test_indels_may_keep_both_borders(
    tmp_path: Path, tiny_model: StripedHyena2, checkpoint: str, windows: str
) -> None:
    sequence = letters(CONTIG)
    records = variants(sequence, 12)
    source = write(tmp_path, sequence, records)
    for strand in ("fwd", "rc"):
        options = {"windows": windows, "strand": strand}
        table = run(source, checkpoint, **options, indel_mode="anchored")
        fixed = run(source, checkpoint, **options)
        for row, other, (at, ref, alt) in zip(table, fixed, records, strict=True):
            start, end = row["window_start"], row["window_end"]
            assert (row["alt_window_start"], row["alt_window_end"]) == (start, end)
            growth = other["alt_window_end"] - other["alt_window_start"] - WIDTH
            assert growth == len(ref) - len(alt)
            if len(ref) == len(alt):
                assert row == other
                continue
            read = (sequence[start:at] + alt + sequence[at + len(ref) : end]).encode()
            read = read if strand == "fwd" else reverse_complement(read)
            assert row["EVO2_ALT"] == pytest.approx(sequence_logprob(tiny_model, read), abs=1e-5)
            assert row["EVO2_REF"] == other["EVO2_REF"] or row["EVO2_STATUS"] == "EDGE"


@pytest.mark.slow
def test_the_reverse_strand_of_the_reversed_genome_is_the_forward_one(
    tmp_path: Path, checkpoint: str
) -> None:
    sequence = letters(CONTIG)
    records = variants(sequence, 12)
    forward = run(write(tmp_path, sequence, records), checkpoint, windows="anchored")

    def turned(text: str) -> str:
        return reverse_complement(text.encode()).decode()

    mirrored = [
        (CONTIG - at - len(ref), turned(ref), turned(alt)) for at, ref, alt in reversed(records)
    ]
    backward = run(
        write(tmp_path, turned(sequence), mirrored), checkpoint, windows="anchored", strand="rc"
    )
    for row, other in zip(forward, reversed(backward), strict=True):
        for key in ("EVO2_DELTA", "EVO2_REF", "EVO2_ALT"):
            assert row[key] == pytest.approx(other[key], abs=2e-6), row


def test_a_record_has_the_same_bytes_alone_and_among_others(
    tmp_path: Path, checkpoint: str
) -> None:
    sequence = letters(CONTIG)
    records = variants(sequence, 12)
    together = run(write(tmp_path, sequence, records), checkpoint, windows="anchored")
    shuffled = records[::2] + records[1::2][::-1]
    again = run(write(tmp_path, sequence, shuffled), checkpoint, windows="anchored")
    assert [again[shuffled.index(record)] for record in records] == together
    for index in (0, 7):
        alone = run(write(tmp_path, sequence, [records[index]]), checkpoint, windows="anchored")
        assert alone == [together[index]]


@pytest.mark.parametrize(("windows", "factor"), [("centred", 2.3), ("anchored", 5)])
def test_real_variants_cost_a_fraction(shared: Path, windows: str, factor: float) -> None:
    """Compared with two whole windows for each of 3,893 SNVs; nothing is computed."""

    folder = shared / "data" / "variants"
    options = ScoreOptions(
        inputs=(folder / "brca1_sge.vcf",), windows=windows, window=8192, strand="fwd"
    )
    num_alleles = 0
    with Reference.open(folder / "brca1_region.fa") as genome:
        scorer = VariantScorer(load("nano"), genome, options, counts_only=True)
        for record in read_vcf(options.source).records:
            num_alleles += len(scorer.score(record))
    assert num_alleles == 3893
    assert 2 * 8192 * num_alleles / scorer.num_bases >= factor


def test_a_dry_run_tells_the_cost_and_writes_nothing(
    tmp_path: Path, checkpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = letters(CONTIG)
    alternate = "C" if sequence[200] == "A" else "A"
    records = [(200, sequence[200], alternate), (201, sequence[201], "<DEL>")]
    source = write(tmp_path, sequence, records)
    source.write_text(source.read_text().replace("#CHROM", "##contig=<ID=one,length=5>\n#CHROM", 1))
    score(
        ScoreOptions(
            inputs=(source,),
            model=checkpoint,
            output=tmp_path / "x.tsv",
            reference=tmp_path / "one.fa",
            device="cpu",
            window=64,
            strand="fwd",
            dry_run=True,
        )
    )
    said = capsys.readouterr().err
    assert "warning: contig one has 5 bases in the VCF" in said  # as the run itself warns
    assert "1 of 2 alleles would be scored" in said
    assert "SYMBOLIC" in said
    # 32 before the allele once, then 32 for each.
    assert "96 bases to compute, 1.3 times fewer than two windows an allele" in said
    assert not (tmp_path / "x.tsv").exists()
