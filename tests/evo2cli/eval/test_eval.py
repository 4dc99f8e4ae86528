"""`evo2 eval`: models of known memory get the numbers they must, and no cell depends on another."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.eval.context import evaluate_context, window_parts
from evo2cli.eval.context import measure as losses_of
from evo2cli.eval.draws import draw_bases, draw_window
from evo2cli.eval.needle import Trial, find_needles, measure
from evo2cli.eval.options import ContextOptions, NeedleOptions
from evo2cli.eval.report import format_length
from evo2cli.genome.alphabet import reverse_complement
from evo2cli.genome.reference import Reference
from evo2cli.lengths import parse_length
from evo2cli.options import ModelOptions
from evo2cli.tables import mean_and_error
from stripedhyena2 import StripedHyena2, save
from stripedhyena2.errors import NonFiniteError

DEPTHS = (0, 25, 50, 75, 100)
LN4 = math.log(4)


@dataclass
class Seen:
    """All the tokens so far, in place of a cache."""

    text: bytes = b""

    @property
    def position(self) -> int:
        return len(self.text)

    def clone(self) -> "Seen":
        return Seen(self.text)


class Fake(nn.Module):
    """Predicts by `following`: what surely comes after a text, or nothing, where A, C, G and T are
    equally likely."""

    def __init__(self, following: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(512, 1)
        self.config = SimpleNamespace(context=1024, original_context=512)
        self.following = following
        self.num_calls = 0

    def new_cache(self, batch_size: int) -> Seen:
        assert batch_size == 1
        return Seen()

    def forward(self, ids_BL: torch.Tensor, cache: Seen) -> torch.Tensor:
        self.num_calls += 1
        logits = torch.full((1, ids_BL.shape[1], 512), -60.0)
        for place, token in enumerate(ids_BL[0].tolist()):
            cache.text += bytes([token])
            logits[0, place, list(self.following(cache.text) or b"ACGT")] = 0
        return logits


def copied(text: bytes) -> bytes:
    """What followed the last 16 bases when they stood in the text before."""
    found = text.find(text[-16:], 0, len(text) - 1)
    return text[found + 16 : found + 17] if found >= 0 and len(text) > 16 else b""


def after_its_last_base(text: bytes) -> bytes:
    return text[-1:].translate(bytes.maketrans(b"ACGT", b"CGTA"))


def needles(
    model: nn.Module, lengths: str = "256,600", depths: str = "0,25,50,75,100", **others: Any
) -> dict[str, Any]:
    options = NeedleOptions(lengths=lengths, depths=depths, **{"repeats": 3} | others)
    return find_needles(options, opener(model))


def opener(*models: nn.Module, opened: list[str] | None = None) -> Callable[..., nn.Module]:
    """Stands in for `open_model`."""
    following = iter(models)

    def open_model(options: ModelOptions) -> nn.Module:
        if opened is not None:
            opened.append(options.model)
        return next(following)

    return open_model


def by_cell(result: dict) -> dict:
    return {(cell["length"], cell["depth"]): cell for cell in result["cells"]}


@pytest.fixture
def trial() -> Trial:
    needle = draw_bases(70, "needle")
    return Trial(draw_bases(430, "haystack"), needle, num_asked=35, hidden=needle)


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    """Three contigs: too short for most, with an N, and of a thousand bases in lower case."""
    file = tmp_path / "genome.fa"
    contigs = [draw_bases(150, 1), draw_bases(300, 2) + b"N" + draw_bases(300, 2)]
    contigs.append(draw_bases(1000, 3).lower())
    file.write_bytes(b"".join(b">c%d\n%s\n" % pair for pair in enumerate(contigs)))
    return file


@pytest.fixture
def checkpoint(tiny_model: StripedHyena2, tmp_path: Path) -> str:
    save(tiny_model, tmp_path / "tiny", {})
    return str(tmp_path / "tiny")


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["eval", *arguments])
    if result.exception:
        raise result.exception
    return result.stdout


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_text_is_its_control_but_for_the_needle(trial: Trial, depth: int) -> None:
    text, start = trial.text(depth), trial.start(depth)
    assert len(text) == len(trial.control) == 500
    assert text[start : start + 70] == text[-70:] == trial.needle
    assert text[:start] == trial.control[:start]
    assert text[start + 70 :] == trial.control[start + 70 :]


def test_depths_reach_from_end_to_end(trial: Trial) -> None:
    assert [trial.start(depth) for depth in DEPTHS] == [0, 90, 180, 270, 360]
    assert trial.text(100)[-140:] == 2 * trial.needle


def test_who_copies_gets_everything() -> None:
    for cell in needles(Fake(copied))["cells"]:
        assert cell["accuracy"] == 1
        assert cell["gap"] == pytest.approx(LN4, abs=1e-5)
        assert cell["gap_se"] < 1e-5


def test_who_forgets_gets_nothing() -> None:
    cells = needles(Fake(after_its_last_base), repeats=8)["cells"]
    assert all(cell["gap"] == cell["gap_se"] == 0 for cell in cells)
    assert all(0.1 < cell["accuracy"] < 0.4 for cell in cells)


def test_the_numbers_are_their_definition(tiny_model: StripedHyena2, trial: Trial) -> None:
    def answer(text: bytes) -> tuple[float, float]:
        ids = torch.tensor([list(text)])
        logprobs = tiny_model(ids)[0, :-1].log_softmax(dim=-1)[-35:]
        asked = ids[0, -35:]
        guessed = torch.tensor(list(b"ACGT"))[logprobs[:, list(b"ACGT")].argmax(dim=1)]
        right = (guessed == asked).double().mean().item()
        return right, logprobs[torch.arange(35), asked].mean().item()

    _, without = answer(trial.control)
    for depth, (accuracy, gap) in zip(DEPTHS, measure(tiny_model, trial, DEPTHS), strict=True):
        right, mean = answer(trial.text(depth))
        assert accuracy == right
        assert gap == pytest.approx(mean - without, abs=1e-9)


@pytest.mark.parametrize("piece", [7, 97, 430, 499])
def test_pieces_do_not_matter(
    tiny_model: StripedHyena2, trial: Trial, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measure(tiny_model, trial, DEPTHS)
    monkeypatch.setattr("stripedhyena2.scoring.CHUNK", piece)
    read = []
    cut = measure(tiny_model, trial, DEPTHS, read.append)
    np.testing.assert_allclose(cut, whole, atol=1e-9)
    before = [trial.start(depth) // piece * piece for depth in DEPTHS]
    assert sum(read) == 500 + sum(500 - start for start in before)  # shared: whole pieces


def test_no_cell_depends_on_which_others_are_asked(
    tiny_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stripedhyena2.scoring.CHUNK", 97)
    model = StripedHyena2(tiny_model.config).eval()  # fp32, where another order would show
    model.load_state_dict(tiny_model.state_dict())
    cells = by_cell(needles(model, "256,400", "0,25,100", repeats=2))
    for (length, depth), cell in cells.items():
        [alone] = needles(model, str(length), str(depth), repeats=2)["cells"]
        assert alone == cell
    assert by_cell(needles(model, "400,256", "100,0,25", repeats=2)) == cells
    assert by_cell(needles(model, "256,400", "0,25,100", repeats=2, seed=1)) != cells


@pytest.mark.parametrize("length", [220, 333, 777])
def test_no_text_is_longer_or_shorter_than_asked(length: int) -> None:
    texts = []

    def following(text: bytes) -> bytes:
        texts.append(text)
        return b""

    needles(Fake(following), str(length), "0,37.5,100", repeats=1)
    assert {len(text) for text in texts} == set(range(1, length + 1))
    wholes = {text for text in texts if len(text) == length}
    assert len(wholes) == 4  # three depths and their control
    assert len({text[-100:] for text in wholes}) == 1


def test_haystacks_of_a_genome_are_its_windows(genome: Path) -> None:
    texts = set()

    def following(text: bytes) -> bytes:
        if len(text) == 600:
            texts.add(text)
        return b""

    result = needles(Fake(following), "600", "100", haystack=genome)
    assert result["haystack"] == str(genome)
    assert len(texts) == 6  # with and without, three times
    assert all(text[:400] in draw_bases(1000, 3) for text in texts)


def whole_texts(length: int, **options: Any) -> list[bytes]:
    """What a model is asked, in order; the texts of a trial come before their control."""
    texts: list[bytes] = []

    def following(text: bytes) -> bytes:
        if len(text) == length:
            texts.append(text)
        return b""

    needles(Fake(following), str(length), **options)
    return texts


def distance(one: bytes, other: bytes) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("hidden", "expected"),
    [
        ({}, lambda needle: needle),
        ({"hidden": "revcomp"}, reverse_complement),
        ({"hidden": "mutated", "mutation_rate": 0.0}, lambda needle: needle),
        ({"hidden": "mutated", "mutation_rate": 0.25}, None),
    ],
)
def test_the_haystack_holds_what_is_asked_for(hidden: dict[str, Any], expected: Any) -> None:
    first, last, control = whole_texts(300, depths="0,100", repeats=1, needle_length=60, **hidden)
    needle = control[-60:]
    assert first[-60:] == last[-60:] == needle
    assert first[60:] == control[60:]
    assert last[:180] == control[:180]
    for held in (first[:60], last[180:240]):
        if expected:
            assert held == expected(needle)
        assert distance(held, needle) == (15 if expected is None else distance(held, needle))
    assert first[:60] == last[180:240]


@pytest.mark.parametrize("hidden", ["exact", "revcomp"])
@pytest.mark.parametrize("depth", [0, 37, 100])
def test_distractors_are_near_copies_of_the_key_beside_the_needle(depth: int, hidden: str) -> None:
    words = {"needle_length": 48, "key_length": 24, "distractors": "8:4", "repeats": 1}
    text, control = whole_texts(1000, depths=str(depth), hidden=hidden, **words)
    needle = control[-48:]
    turn = reverse_complement if hidden == "revcomp" else bytes
    haystacks = [turn(whole[:-48]) for whole in (text, control)]

    def places(haystack: bytes, far: int) -> list[int]:
        key = needle[:24]
        ends = range(len(haystack) - 23)
        return [at for at in ends if distance(haystack[at : at + 24], key) == far]

    start = round(depth / 100 * (952 - 48))
    start = 952 - 48 - start if hidden == "revcomp" else start
    assert places(haystacks[0], 0) == [start]
    assert not places(haystacks[1], 0)
    near = places(haystacks[0], 4)
    assert near == places(haystacks[1], 4)
    assert len(near) == 8
    assert all(abs(one - other) >= 48 for one in near for other in [*near, start] if one != other)
    values = {haystacks[0][at + 24 : at + 48] for at in near}
    assert len(values) == 8
    assert all(distance(value, needle[24:]) > 8 for value in values)
    # Apart from the needle and the distractors, nothing differs from the haystack.
    [_, plain] = whole_texts(1000, depths=str(depth), **words | {"distractors": "0"})
    touched = {at + step for at in near for step in range(48)}
    for at, (one, other) in enumerate(zip(haystacks[1], turn(plain[:-48]), strict=True)):
        assert one == other or at in touched


def remembers(is_key: Callable[[bytes, bytes], bool]) -> Callable[[bytes], bytes]:
    """Copies what followed the first 24 bases that look to it like the key, 24 bases at a time."""

    def following(text: bytes) -> bytes:
        asked = len(text) - (512 - 48 + 24)
        if asked < 0:
            return b""
        key = text[512 - 48 : 512 - 24]
        for at in range(512 - 96 + 1):
            if is_key(text[at : at + 24], key):
                return text[at + 24 + asked : at + 25 + asked]
        return b""

    return following


def test_distractors_confuse_those_who_do_not_look_closely() -> None:
    words = {"needle_length": 48, "key_length": 24, "distractors": "0,6:2,6:6", "repeats": 6}
    exactly, roughly = (
        {
            cell["distance"]: cell
            for cell in needles(Fake(remembers(rule)), "512", "100", **words)["cells"]
        }
        for rule in (bytes.__eq__, lambda one, other: distance(one, other) <= 4)
    )
    for far in (None, 2, 6):
        assert exactly[far]["accuracy"] == exactly[far]["exact"] == exactly[far]["exact_low"] == 1
        assert exactly[far]["gap"] == pytest.approx(LN4, abs=1e-5)
    assert roughly[None]["exact"] == roughly[6]["exact"] == 1
    assert roughly[2]["exact"] < 0.5
    assert roughly[2]["accuracy"] < 0.7
    assert [exactly[far]["distractors"] for far in (None, 2, 6)] == [0, 6, 6]


@pytest.mark.parametrize(
    "words",
    [
        {"hidden": "revcomp"},
        {"hidden": "mutated"},
        {"distractors": "3:5", "key_length": 20},
        {"distractors": "2:1", "hidden": "revcomp"},
    ],
)
def test_cells_are_computed_from_the_logits_of_their_texts(
    tiny_model: StripedHyena2, words: dict[str, Any]
) -> None:
    words = {"needle_length": 40, "repeats": 3} | words
    num_asked = 40 - words.get("key_length", 20)
    texts = whole_texts(300, depths="25", **words)

    def losses(text: bytes) -> torch.Tensor:
        ids = torch.tensor([list(text)])
        logits = tiny_model(ids)[0, :-1]
        return nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")[-num_asked:]

    def right(text: bytes) -> torch.Tensor:
        logits = tiny_model(torch.tensor([list(text)]))[0, -num_asked - 1 : -1, list(b"ACGT")]
        return (
            torch.tensor(list(b"ACGT"))[logits.argmax(1)] == torch.tensor(list(text))[-num_asked:]
        )

    with torch.no_grad():
        gaps = [
            (losses(control) - losses(text)).mean().item()
            for text, control in zip(texts[::2], texts[1::2], strict=True)
        ]
        accuracies = [right(text).double().mean().item() for text in texts[::2]]
    [cell] = needles(tiny_model, "300", "25", **words)["cells"]
    assert cell["gap"] == pytest.approx(np.mean(gaps), abs=1e-6)
    assert cell["accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-6)
    assert cell["exact"] == np.mean([one == 1 for one in accuracies])
    assert min(gaps) - 1e-6 <= cell["gap_low"] <= cell["gap"] <= cell["gap_high"]
    assert cell["gap_high"] <= max(gaps) + 1e-6


def test_no_cell_with_distractors_depends_on_others(tiny_model: StripedHyena2) -> None:
    words = {"needle_length": 40, "repeats": 2}

    def kind(cell: dict[str, Any]) -> str:
        return f"{cell['distractors']}:{cell['distance']}" if cell["distractors"] else "0"

    cells = needles(tiny_model, "300", "0,60", distractors="0,3:4,2:4", **words)["cells"]
    assert len(cells) == 6
    for cell in cells:
        place = str(cell["length"]), str(cell["depth"])
        [alone] = needles(tiny_model, *place, distractors=kind(cell), **words)["cells"]
        assert alone == cell


def test_errors_are_those_of_repeats() -> None:
    assert mean_and_error([1.0, 3.0]) == (2, 1)
    assert mean_and_error([1.0]) == (1, None)
    [cell] = needles(Fake(copied), "256", "50", repeats=1)["cells"]
    assert (cell["accuracy_se"], cell["gap_se"]) == (None, None)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    broken, healthy, whole = Fake(copied), Fake(copied), Fake(copied)

    def break_at_the_end(text: bytes) -> bytes:
        if broken.num_calls > 20:
            raise KeyboardInterrupt
        return copied(text)

    broken.following = break_at_the_end
    output = tmp_path / "needle.json"
    with pytest.raises(KeyboardInterrupt):
        needles(broken, output=output)
    assert not output.exists()
    with torch.no_grad():
        for model in (healthy, whole):  # equal weights: the same model
            model.embedding.weight.copy_(broken.embedding.weight)
    assert needles(healthy, output=output)["cells"] == needles(whole)["cells"]
    assert healthy.num_calls < whole.num_calls
    assert [file.name for file in tmp_path.iterdir()] == ["needle.json"]


def test_stretches_fill_the_window() -> None:
    parts = window_parts(2048, 512)
    assert [(part.start, part.end) for part in parts if part.kind == "stretch"] == [
        (0, 128),
        (128, 256),
        (256, 512),
        (512, 1024),
        (1024, 2048),
    ]
    assert [(part.kind, part.end) for part in parts[-2:]] == [("short", 512), ("all", 2048)]
    assert [part.end for part in window_parts(300, 512)] == [128, 256, 300, 300, 300]
    assert [part.end for part in window_parts(50, 8)] == [50, 8, 50]


@pytest.mark.parametrize("piece", [1, 97, 8192])
def test_a_loss_is_that_of_one_pass(
    tiny_model: StripedHyena2, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stripedhyena2.scoring.CHUNK", piece)
    window = draw_bases(500, "window")
    ids = torch.tensor([list(window)])
    loss = nn.functional.cross_entropy(tiny_model(ids)[0, :-1], ids[0, 1:], reduction="none")
    wanted = [loss[:127], loss[127:255], loss[255:499], loss[:255], loss]
    measured = losses_of(tiny_model, window, window_parts(500, 256))
    assert measured == pytest.approx([part.mean().item() for part in wanted], abs=1e-9)


def test_who_copies_loses_less_the_farther_it_reads(tmp_path: Path) -> None:
    (tmp_path / "repeat.fa").write_bytes(b">r\n" + 8 * draw_bases(256, "unit") + b"\n")
    options = ContextOptions(genome=tmp_path / "repeat.fa", length="1k", windows=4)
    rows = evaluate_context(options, opener(Fake(copied)))["rows"]
    losses = {(row["start"], row["end"]): row["loss"] for row in rows if row["part"] == "stretch"}
    assert losses[128, 256] == pytest.approx(LN4, abs=1e-5)
    assert losses[512, 1024] == pytest.approx(0, abs=1e-5)
    assert {row["part"]: row["end"] for row in rows[-2:]} == {"short": 512, "all": 1024}


def test_against_itself_nothing_differs(genome: Path, tiny_model: StripedHyena2) -> None:
    options = ContextOptions(
        genome=genome, model="after", against="before", length="256", windows=3
    )
    opened: list[str] = []
    result = evaluate_context(options, opener(tiny_model, tiny_model, opened=opened))
    assert opened == ["after", "before"]
    for row in result["rows"]:
        assert row["loss"] == row["against"]
        assert row["difference"] == row["difference_se"] == 0


def test_a_difference_is_taken_in_pairs(genome: Path) -> None:
    models = opener(Fake(copied), Fake(lambda _: b"ACGTN"))  # one letter more: ln 5
    options = ContextOptions(genome=genome, model="a", against="b", length="200", windows=3)
    row = evaluate_context(options, models)["rows"][-1]
    assert row["difference"] == pytest.approx(LN4 - math.log(5), abs=1e-5)
    assert row["difference_se"] == pytest.approx(0, abs=1e-5)


def test_without_a_length_it_is_the_context(genome: Path, tiny_model: StripedHyena2) -> None:
    options = ContextOptions(genome=genome, windows=1)
    assert evaluate_context(options, opener(tiny_model))["length"] == tiny_model.config.context


def test_windows_that_must_overlap_are_told(
    genome: Path, tiny_model: StripedHyena2, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_context(ContextOptions(genome=genome, length="600", windows=4), opener(tiny_model))
    told = capsys.readouterr().err
    assert "4 windows of 600 bases must overlap" in told
    assert "--length 600, --model nano: longer than the 256 positions" in told


def test_random_bases_are_uniform_and_the_same_everywhere() -> None:
    bases = draw_bases(100_000, "seed", 1)
    assert len(bases) == 100_000
    assert all(abs(bases.count(base) - 25_000) < 700 for base in b"ACGT")
    assert draw_bases(99, "seed", 1) == bases[:99]
    assert draw_bases(99, "seed", 2) != bases[:99]
    assert draw_bases(20, "seed", 1) == b"AATAACATCCGGAGAGTTGT"


def test_windows_are_upper_case_free_of_n_and_equally_likely(genome: Path) -> None:
    with Reference.open(genome) as reference:
        windows = [draw_window(reference, genome, 290, "w", index) for index in range(400)]
        assert windows[7] == draw_window(reference, genome, 290, "w", 7)
    assert all(len(window) == 290 and not window.strip(b"ACGT") for window in windows)
    of_the_second = sum(window in draw_bases(300, 2) for window in windows)
    assert of_the_second == pytest.approx(400 * 22 / (22 + 711), abs=12)


@pytest.mark.parametrize("command", ["needle", "context"])
def test_help_knows_json(command: str) -> None:
    result = CliRunner().invoke(app, ["eval", command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "--json" in result.output


@pytest.mark.parametrize("command", ["needle", "context"])
def test_files_hold_what_is_shown(
    command: str, genome: Path, checkpoint: str, tmp_path: Path
) -> None:
    arguments = {
        "needle": ["needle", "--lengths", "200,256", "--depths", "0,99.5", "--repeats", "2"],
        "context": ["context", str(genome), "--length", "200", "--windows", "2"],
    }[command]
    arguments += ["--model", checkpoint, "--dtype", "fp64"]
    figure, table, whole = (tmp_path / name for name in ("x.png", "x.tsv", "x.json"))
    result = json.loads(run(*arguments, "--json", "-O", str(whole), "--plot", str(figure)))
    assert json.loads(whole.read_text()) == result
    assert result["evaluation"] == command
    assert (result["model"], result["seed"], len(result["fingerprint"])) == (checkpoint, 0, 12)
    assert figure.read_bytes().startswith(b"\x89PNG")

    page = run(*arguments, "-O", str(table))
    rows = result["cells" if command == "needle" else "rows"]
    header, *lines = (line.split("\t") for line in table.read_text().splitlines())
    assert [header] * len(rows) == [list(row) for row in rows]
    key, digits = ("accuracy", 3) if command == "needle" else ("loss", 4)
    for line, row in zip(lines, rows, strict=True):
        assert float(line[header.index(key)]) == row[key]
        assert f"{row[key]:.{digits}f}" in page
    assert {file.name for file in tmp_path.glob("x.*")} == {"x.png", "x.tsv", "x.json"}


def test_both_models_are_drawn(genome: Path, checkpoint: str, tmp_path: Path) -> None:
    figure = tmp_path / "x.svg"
    run(
        *("context", str(genome), "--model", checkpoint, "--against", "nano", "--windows", "2"),
        *("--length", "200", "--plot", str(figure)),
    )
    assert figure.read_text().count("<svg") == 1


@pytest.mark.parametrize("length", ["512", "1k", "3k", "1M", "2M", "1000"])
def test_lengths_are_shown_as_they_are_given(length: str) -> None:
    assert format_length(parse_length(length, "--lengths")) == length


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"lengths": "512,199"},
            "--lengths 199: too short for a needle of 100 bases and its copy",
        ),
        ({"lengths": "8kb"}, "--lengths 8kb: not a length such as 8192"),
        ({"lengths": ""}, "--lengths : not a length"),
        ({"depths": "0,101"}, "--depths 101: must be a percentage from 0 to 100"),
        ({"depths": "-1"}, "--depths -1: must be a percentage"),
        ({"depths": "nan"}, "--depths nan: must be a percentage"),
        ({"depths": "half"}, "--depths half: not a percentage such as 50"),
        ({"needle_length": 31}, "--needle-length 31: half of it must be unique"),
        ({"key_length": 15}, "--key-length 15: must be at least 16"),
        ({"key_length": 100}, "--key-length 100: leaves no value in a needle of 100 bases"),
        ({"mutation_rate": 0.1}, "--mutation-rate 0.1: needs --hidden mutated"),
        ({"hidden": "mutated", "mutation_rate": 1.5}, "--mutation-rate 1.5: must be at most 1"),
        ({"hidden": "other"}, "--hidden other: must be one of exact, revcomp, mutated"),
        ({"distractors": "8"}, "--distractors 8: must be 0, or a number and a Hamming distance"),
        ({"distractors": "8:51"}, "a key of 50 bases has copies at Hamming distances from 1 to 50"),
        (
            {"distractors": "0,8:4"},
            "--lengths 512: too short for a needle of 100 bases, 8 distractors and its copy; give "
            "1100 or more",
        ),
        ({"repeats": 0}, "--repeats 0: must be at least 1"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"output": Path("x.csv")}, "--output x.csv: needs the suffix .tsv or .json"),
        ({"output": Path("nowhere/x.tsv")}, "the folder nowhere is missing"),
        ({"plot": Path("x.gif")}, "--plot x.gif: needs the suffix .png or .pdf or .svg"),
        ({"haystack": Path("missing.fa")}, "missing.fa: cannot be read"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict, message: str) -> None:
    opened: list[str] = []
    with pytest.raises(UserError) as error:
        find_needles(
            NeedleOptions(**{"lengths": "512", "depths": "50"} | changes), opener(opened=opened)
        )
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not opened


def test_a_genome_without_such_a_window_is_refused(genome: Path) -> None:
    with pytest.raises(UserError, match=r"no contig holds a window of 1,900 bases.*has 1,000"):
        needles(Fake(copied), "2000", haystack=genome)
    genome.write_text(">n\n" + "ACGTACGTAN" * 50 + "\n")
    with pytest.raises(UserError, match="200 windows of 156 bases were tried, and all hold"):
        needles(Fake(copied), "256", haystack=genome)
    with pytest.raises(UserError, match=r"--length 1: at least 2 bases"):
        ContextOptions(genome=genome, length="1")


def test_without_matplotlib_there_is_no_figure(
    genome: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    figure, message = tmp_path / "x.png", r"--plot needs matplotlib; pip install 'evo2cli\[plots\]'"
    with pytest.raises(UserError, match=message):
        find_needles(NeedleOptions(plot=figure), opener())
    with pytest.raises(UserError, match=message):
        evaluate_context(ContextOptions(genome=genome, plot=figure), opener())


def test_what_is_no_number_is_not_trusted(tiny_model: StripedHyena2, genome: Path) -> None:
    model = StripedHyena2(tiny_model.config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"a text of 256 bases.*is nan"):
        needles(model, "256")
    with pytest.raises(NonFiniteError, match=r"a window of 256 bases.*is nan"):
        evaluate_context(ContextOptions(genome=genome, length="256"), opener(model))


@pytest.mark.parametrize(
    "arguments",
    [
        ["needle", "--lengths", "100"],
        ["needle", "--model", "evo3"],
        ["context", "missing.fa"],
    ],
    ids=["too-short", "no-model", "no-genome"],
)
def test_bad_input_is_code_2(
    command_line: Callable[..., tuple[int, str, str]], arguments: list[str]
) -> None:
    code, data, talk = command_line("eval", *arguments)
    assert (code, data) == (2, "")
    assert talk.startswith("evo2: ")
    assert len(talk.splitlines()) == 1
