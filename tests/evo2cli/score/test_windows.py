"""Anchored windows: scores of the whole window, whoever stands beside it, on either strand."""

import json
import random
from collections.abc import Callable
from functools import partial
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
from evo2cli.score.prefixes import AnchoredScorer, CentredScorer, WindowScorer
from evo2cli.score.run import score
from evo2cli.score.variants import count_bases
from stripedhyena2 import StripedHyena2, load, save
from stripedhyena2.scoring import ScoringState, sequence_logprob
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
    """SNVs, insertions, deletions and exchanges, 0-based, everywhere on the contig."""
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


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_windows_in_any_order_have_their_totals(
    tiny_model: StripedHyena2, data: st.DataObject
) -> None:
    """Whatever is still at hand, and wherever the windows differ."""
    scorers: list[WindowScorer] = [AnchoredScorer(tiny_model, 16), CentredScorer(tiny_model)]
    genome = letters(400).encode()
    for _ in range(data.draw(st.integers(1, 5))):
        start, before = data.draw(st.sampled_from([0, 32, 64])), data.draw(st.integers(0, 90))
        after = data.draw(st.integers(1, 40))
        at = start + before
        reference = Window(genome[start:at], genome[at : at + 1], genome[at + 1 : at + after])
        alternate = Window(
            reference.before, data.draw(st.sampled_from([b"A", b"GT"])), reference.after
        )
        for scorer in scorers:
            for score_of, window in ((scorer.reference, reference), (scorer.alternate, alternate)):
                expected = sequence_logprob(tiny_model, window.sequence)
                assert score_of(window) == pytest.approx(expected, abs=1e-8)


def test_cuts_and_their_keys_are_the_same_whoever_was_there(tiny_model: StripedHyena2) -> None:
    """Bit for bit in fp32: alone, after neighbours, and after another place."""
    model = StripedHyena2(tiny_model.config).eval()
    model.load_state_dict(tiny_model.state_dict())
    genome = letters(400).encode()

    def window(start: int, at: int) -> Window:
        return Window(genome[start:at], b"G", genome[at + 1 : start + 128])

    alone = AnchoredScorer(model, 16)
    expected = [alone.alternate(window(64, 150)), alone.reference(window(64, 150))]
    busy = AnchoredScorer(model, 16)
    for start, at in ((64, 130), (64, 180), (0, 70), (64, 131)):
        busy.alternate(window(start, at))
        busy.reference(window(start, at))
    assert [busy.alternate(window(64, 150)), busy.reference(window(64, 150))] == expected


@pytest.mark.parametrize("scorer_of", [CentredScorer, partial(AnchoredScorer, step=16)])
def test_numbers_of_threads_change_the_last_digits_at_most(
    tiny_model: StripedHyena2, scorer_of: Callable[[StripedHyena2], WindowScorer]
) -> None:
    """As docs/variants.md says; with the same number, not even these."""
    model = StripedHyena2(tiny_model.config).eval()
    model.load_state_dict(tiny_model.state_dict())
    genome = letters(128).encode()
    window = Window(genome[:70], b"G", genome[71:])

    def scores(threads: int) -> list[float]:
        torch.set_num_threads(threads)
        scorer = scorer_of(model)
        return [scorer.reference(window), scorer.alternate(window)]

    before = torch.get_num_threads()
    try:
        one, two, again = scores(1), scores(2), scores(1)
    finally:
        torch.set_num_threads(before)
    assert again == one
    assert two == pytest.approx(one, rel=0, abs=1e-4)


def test_neighbours_are_computed_once(tiny_model: StripedHyena2) -> None:
    seen = []

    def extend(state: ScoringState, bases: bytes) -> ScoringState:
        seen.append(len(bases))
        return state.extend(bases)

    scorer = AnchoredScorer(tiny_model, 16, extend)
    genome = letters(200).encode()
    for at in range(70, 90):
        scorer.reference(Window(genome[:at], genome[at : at + 1], genome[at + 1 : 128]))
        for letter in b"AC":
            scorer.alternate(Window(genome[:at], bytes([letter]), genome[at + 1 : 128]))
    suffixes = 2 * sum(128 - at for at in range(70, 90))
    sites = sum(at % 16 for at in range(70, 90))
    assert sum(seen) == scorer.num_bases == 128 + sites + suffixes


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
    for place in (0, 7):
        alone = run(write(tmp_path, sequence, [records[place]]), checkpoint, windows="anchored")
        assert alone == [together[place]]


def test_letters_are_cut_for_the_cache_not_for_the_score(tiny_model: StripedHyena2) -> None:
    """Keys of earlier cuts are views of the last one's."""
    scorer = AnchoredScorer(tiny_model, 16)
    genome = letters(128).encode()
    scorer.reference(Window(genome[:70], genome[70:71], genome[71:]))
    attention = tiny_model.config.stripes.index("A")
    keys = [cut.cache.pasts[attention].keys_BHTW for cut in scorer._states[1:]]
    assert [each.shape[2] for each in keys] == list(range(16, 129, 16))
    assert len({each.untyped_storage().data_ptr() for each in keys}) == 1
    torch.testing.assert_close(keys[0], keys[-1][:, :, :16], rtol=0, atol=0)


@pytest.mark.parametrize(("windows", "factor"), [("centred", 2.3), ("anchored", 5)])
def test_real_variants_cost_a_fraction(shared: Path, windows: str, factor: float) -> None:
    """Against a reference and an alternate window for each of 3,893 SNVs; nothing is computed."""

    folder = shared / "data" / "variants"
    options = ScoreOptions(
        inputs=(folder / "brca1_sge.vcf",), windows=windows, window=8192, strand="fwd"
    )
    num_alleles = 0
    with Reference.open(folder / "brca1_region.fa") as genome:
        scorer = VariantScorer(load("nano"), genome, options, count_bases)
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
    assert "1 of 2 alleles would be scored" in said
    assert "SYMBOLIC" in said
    # 32 before the allele once, then 32 for each.
    assert "96 bases to compute, 1.3 times fewer than two windows an allele" in said
    assert not (tmp_path / "x.tsv").exists()
