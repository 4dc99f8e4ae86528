"""`evo2 track`: a value per base; log-probabilities add up to the score; killed runs resume."""

import gzip
import json
import math
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch

from evo2cli.errors import UserError
from evo2cli.genome.fasta import read_records
from evo2cli.journal import _Journal
from evo2cli.options import DType
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from evo2cli.track.formats import open_bigwig
from evo2cli.track.options import TrackOptions, Value
from evo2cli.track.run import entropy, write_track
from stripedhyena2 import ModelConfig, StripedHyena2, save
from stripedhyena2.scoring import ScoringState
from tests.ranks import Hold, World

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    [record] = read_records(EXAMPLES / "phix174.fa")
    path = tmp_path / "some.fa"
    path.write_bytes(
        b">a\n%s\n>none\n>one\nA\n>b\n%s\n" % (record.sequence[:400], record.sequence[:90])
    )
    return path


def run(source: Path, checkpoint: str, track: str, suffix: str = ".bedgraph", **options) -> Path:
    output = source.with_name(f"out{suffix}")
    write_track(
        TrackOptions(
            source=source, model=checkpoint, output=output, device="cpu", value=track, **options
        )
    )
    return output


def lines(path: Path) -> list[tuple[str, int, float]]:
    read = []
    for line in path.read_text().splitlines():
        name, start, end, value = line.split("\t")
        assert int(end) == int(start) + 1
        read.append((name, int(start), float(value)))
    return read


def test_log_probabilities_sum_up_to_the_score(source: Path, checkpoint: str) -> None:
    table = source.with_name("scores.jsonl")
    score(ScoreOptions(inputs=(source,), model=checkpoint, output=table, device="cpu"))
    found = lines(run(source, checkpoint, "logprob"))
    positions = [(name, start) for name, start, _ in found]
    assert positions == [("a", i) for i in range(1, 400)] + [("b", i) for i in range(1, 90)]
    for row in map(json.loads, table.read_text().splitlines()):
        if row["sum_logprob"] is not None:
            total = sum(value for name, _, value in found if name == row["name"])
            assert total == pytest.approx(row["sum_logprob"], abs=1e-3)


@pytest.mark.parametrize("track", ["logprob", "entropy"])
def test_pieces_of_any_length_give_the_same(
    source: Path, checkpoint: str, track: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = lines(run(source, checkpoint, track))
    for piece in (1, 37, 90):
        monkeypatch.setattr("stripedhyena2.scoring.CHUNK", piece)
        found = lines(run(source, checkpoint, track))
        assert [entry[:2] for entry in found] == [entry[:2] for entry in whole]
        values, expected = ([entry[2] for entry in track] for track in (found, whole))
        assert values == pytest.approx(expected, abs=2e-4)


def test_entropy_is_its_definition() -> None:
    logits = torch.full((3, 512), 5.0)
    logits[1, [65, 67, 71, 84]] = torch.tensor([9.0, -99.0, -99.0, -99.0])
    logits[2, [65, 67, 71, 84]] = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 8]).log()
    assert entropy(logits.log_softmax(-1)).tolist() == pytest.approx([2, 0, 1.75], abs=1e-6)


def test_entropy_lies_between_0_and_2_bits(source: Path, checkpoint: str) -> None:
    values = [value for _, _, value in lines(run(source, checkpoint, "entropy"))]
    assert 0 <= min(values) < max(values) <= 2
    assert len(values) == 399 + 89


def test_a_region_is_read_after_the_bases_before_it(source: Path, checkpoint: str) -> None:
    """With the whole left side as lead, the region has the values of the whole record."""
    whole = {(n, s): v for n, s, v in lines(run(source, checkpoint, "logprob"))}
    regions = ("b:11-20", "a:101-150", "a:141-160", "a:1-3")
    found = lines(run(source, checkpoint, "logprob", regions=regions, window=400))
    assert [entry[:2] for entry in found] == [
        *(("a", position) for position in (1, 2, *range(100, 160))),
        *(("b", position) for position in range(10, 20)),
    ]
    for name, start, value in found:
        assert value == pytest.approx(whole[name, start], abs=2e-4)
    bed = source.with_name("r.bed")
    bed.write_text("a\t100\t110\n")
    short = lines(run(source, checkpoint, "logprob", bed=bed, window=2))
    assert len(short) == 10
    assert not math.isclose(short[0][2], whole["a", 100], abs_tol=1e-3)


def test_a_record_in_pieces_is_its_regions(source: Path, checkpoint: str) -> None:
    in_pieces = lines(run(source, checkpoint, "logprob", window=70))
    expected = []
    for name, length in (("a", 400), ("one", 1), ("b", 90)):
        for start in range(0, length, 70):
            region = f"{name}:{start + 1}-{min(start + 70, length)}"
            expected += lines(run(source, checkpoint, "logprob", regions=(region,), window=70))
    assert in_pieces == expected
    assert len(in_pieces) == 399 + 89
    whole = run(source, checkpoint, "logprob").read_bytes()
    assert run(source, checkpoint, "logprob", window=400).read_bytes() == whole


def test_gzip_and_bigwig_hold_the_same(source: Path, checkpoint: str) -> None:
    text = run(source, checkpoint, "entropy").read_bytes()
    packed = run(source, checkpoint, "entropy", ".bedgraph.gz")
    assert gzip.decompress(packed.read_bytes()) == text
    bigwig = pytest.importorskip("pyBigWig", reason="pyBigWig, of the extra bigwig, is not here")
    expected = lines(run(source, checkpoint, "entropy"))
    file = bigwig.open(str(run(source, checkpoint, "entropy", ".bw")))
    assert file.chroms()["a"] == 400
    values = file.values("a", 1, 400)
    assert values == pytest.approx([value for name, _, value in expected if name == "a"], abs=1e-5)
    regional = bigwig.open(str(run(source, checkpoint, "entropy", ".bw", regions=("b:5-9",))))
    assert [entry[:2] for entry in regional.intervals("b")] == [(i, i + 1) for i in range(4, 9)]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of bases of each forward pass."""
    predict, found = ScoringState.predict, []

    def predict_and_count(state: ScoringState, bases: bytes) -> Any:
        found.append(len(bases))
        return predict(state, bases)

    monkeypatch.setattr(ScoringState, "predict", predict_and_count)
    return found


@pytest.mark.parametrize("suffix", [".bedgraph", ".bedgraph.gz", ".bw"])
@pytest.mark.parametrize(
    ("words", "num_stored", "remaining"),
    [
        ([], 1, [1, 90]),
        (["--window", "70"], 4, [70, 70, 70, 50, 1, 70, 70, 20]),
        (["--window", "30", "--regions", "a:101-120", "--regions", "b:51-60"], 1, [30, 10]),
    ],
    ids=["records", "pieces", "regions"],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    source: Path,
    checkpoint: str,
    command_line: Callable[..., tuple[int, str, str]],
    passes: list[int],
    suffix: str,
    words: list[str],
    num_stored: int,
    remaining: list[int],
) -> None:
    if suffix == ".bw":
        pytest.importorskip("pyBigWig", reason="pyBigWig, of the extra bigwig, is not here")
    folder, whole = source.with_name("output"), source.with_name(f"whole{suffix}")
    folder.mkdir()
    output = folder / f"x{suffix}"
    words = ["track", str(source), "--model", checkpoint, "--device", "cpu", *words]
    code, _, err = command_line(*words, "-O", str(whole))
    assert code == 0, err
    words += ["-O", str(output)]
    killed = World(1, source.parent, "killed", words, Hold(_Journal, "recall", num_stored))
    assert killed.end_held(signal.SIGKILL) == [-signal.SIGKILL]
    assert not output.exists()
    passes.clear()
    code, _, err = command_line(*words)
    assert code == 0, err
    assert f"resumed after {num_stored} result" in err
    assert passes == remaining
    assert output.read_bytes() == whole.read_bytes()
    assert list(folder.iterdir()) == [output]


def test_a_record_that_was_not_finished_is_read_again_in_the_same_chunks(
    source: Path,
    checkpoint: str,
    passes: list[int],
    stopped_after: Callable[[int], AbstractContextManager[None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("stripedhyena2.scoring.CHUNK", 150)
    straight, expected = run(source, checkpoint, "logprob").read_bytes(), [150, 150, 100, 1, 90]
    assert passes == expected
    with stopped_after(2):
        run(source, checkpoint, "logprob")
    passes.clear()
    assert run(source, checkpoint, "logprob").read_bytes() == straight
    assert passes == expected


def test_values_of_other_settings_or_bases_are_not_used_again(
    source: Path,
    checkpoint: str,
    tiny_config: ModelConfig,
    capsys: pytest.CaptureFixture[str],
    stopped_after: Callable[[int], AbstractContextManager[None]],
) -> None:
    other = source.with_name("other")
    save(StripedHyena2.from_seed(tiny_config, seed=1), other, {})
    changed = source.with_name("changed.fa")
    changed.write_bytes(source.read_bytes().replace(b">one\nA", b">one\nC"))
    output = source.with_name("x.bedgraph")
    before = {"source": source, "model": checkpoint, "window": 200, "device": "cpu"}
    for others, num_kept in (
        ({"model": str(other)}, 0),
        ({"dtype": DType.FP64}, 0),
        ({"value": Value.ENTROPY}, 0),
        ({"window": 400}, 0),
        ({"source": changed}, 2),
        ({}, 3),
    ):
        now: dict[str, Any] = {**before, **others}
        straight = source.with_name("straight.bedgraph")
        write_track(TrackOptions(**now, output=straight))
        with stopped_after(3):
            write_track(TrackOptions(**before, output=output))
        capsys.readouterr()
        write_track(TrackOptions(**now, output=output))
        assert output.read_bytes() == straight.read_bytes()
        said = capsys.readouterr().err
        assert ("resumed after" in said) == bool(num_kept)
        assert f"resumed after {num_kept} results" in said or not num_kept
        assert not output.with_name("x.bedgraph.journal").exists()


@pytest.mark.parametrize("cut", [1, 100, 5_000, 20_000])
def test_a_bigwig_on_a_full_disk_is_an_error_wherever_it_is_cut(tmp_path: Path, cut: int) -> None:
    pytest.importorskip("pyBigWig", reason="pyBigWig, of the extra bigwig, is not here")
    values = torch.rand(9_000, generator=torch.Generator().manual_seed(0)).tolist()
    path = tmp_path / "x.bw"

    def write() -> None:
        with open_bigwig(path, {"a": 10_000}) as write_values:
            write_values("a", 7, values)

    write()
    size, before = path.stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    path.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - cut, before[1]))
    try:
        with pytest.raises(UserError, match=r"x\.bw: cannot be written; is the disk full"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"track": "loss"}, "--value loss: must be one of logprob, entropy"),
        ({"source": Path("-")}, "give a file instead of stdin"),
        ({"suffix": ".vcf"}, "needs .bedgraph, .bedgraph.gz or .bw"),
        ({"regions": ("c:1-2",)}, "--regions c:1-2: the genome has no contig c; it has a, "),
        ({"regions": ("b:91-95",)}, "--regions b:91-95: reaches beyond base 90, where b ends"),
    ],
)
def test_invalid_options_are_refused_in_one_line(
    source: Path, checkpoint: str, changes: dict, message: str
) -> None:
    words = {"source": source, "track": "logprob"} | changes
    with pytest.raises(UserError) as error:
        run(words.pop("source"), checkpoint, words.pop("track"), **words)
    assert message in str(error.value)


def test_without_pybigwig_the_error_says_how_to_install_it(
    source: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyBigWig", None)
    with pytest.raises(UserError, match=r"pip install 'evo2cli\[bigwig\]', or write"):
        run(source, checkpoint, "logprob", ".bw")


@pytest.mark.parametrize("lines", ["", "# nothing\n", "a\t5\t5\n"])
def test_a_bed_file_without_a_base_is_refused(source: Path, lines: str) -> None:
    bed = source.with_name("x.bed")
    bed.write_text(lines)
    with pytest.raises(UserError, match=r"x\.bed: has no interval with a base"):
        write_track(TrackOptions(source=source, bed=bed))


def test_records_with_the_same_name_are_refused(tmp_path: Path, checkpoint: str) -> None:
    twice = tmp_path / "twice.fa"
    twice.write_text(">a\nACGT\n>a\nACGT\n")
    with pytest.raises(UserError, match="records share a name"):
        run(twice, checkpoint, "logprob")


@pytest.mark.parametrize("suffix", [".bedgraph", ".bw"])
def test_a_record_without_a_name_is_refused(tmp_path: Path, checkpoint: str, suffix: str) -> None:
    nameless = tmp_path / "nameless.fa"
    nameless.write_text(">\nACGT\n>a\nACGT\n")
    with pytest.raises(UserError, match=r"nameless\.fa: a record has no name"):
        run(nameless, checkpoint, "logprob", suffix)
