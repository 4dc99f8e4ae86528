"""`evo2 eval continuation`: the bases that a model writes, by a plain loop over its logits."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evo2cli.errors import UserError
from evo2cli.eval.continuation import (
    ORDER,
    ROWS,
    Writer,
    continuation_page,
    continue_by_counts,
    evaluate_continuation,
    read_windows,
)
from evo2cli.eval.draws import draw_bases
from evo2cli.eval.options import ContinuationOptions
from stripedhyena2 import StripedHyena2
from stripedhyena2.errors import NonFiniteError
from tests.evo2cli.eval.test_eval import opener


def greedy(model: StripedHyena2, context: bytes, num_bases: int) -> bytes:
    """Base by base, each from a forward pass over all bases before it."""
    text = context
    for _ in range(num_bases):
        with torch.no_grad():
            logits = model(torch.tensor([list(text)]))[0, -1]
        text += bytes([max(b"ACGT", key=lambda base: logits[base].item())])
    return text[len(context) :]


def share(one: bytes, other: bytes) -> float:
    return float(np.mean(np.frombuffer(one, np.uint8) == np.frombuffer(other, np.uint8)))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Rows of two groups, in either case; two of them cannot be used."""
    path = tmp_path / "windows.tsv"
    rows = [("kind", "sequence")]
    for index in range(9):
        bases = draw_bases(70 + index, "row", index).decode()
        rows.append((f"k{index % 2}", bases.lower() if index % 3 else bases))
    rows += [("k0", "ACGT" * 5), ("k1", "ACGTN" * 20)]
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return path


def evaluate(model: StripedHyena2, *sources: Path, **words: Any) -> dict[str, Any]:
    words = {"contexts": "20,60", "bases": 7} | words
    return evaluate_continuation(ContinuationOptions(sources=sources, **words), opener(model))


def test_the_accuracy_is_that_of_a_plain_loop(
    tiny_model: StripedHyena2, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = evaluate(tiny_model, table, by="kind")
    assert "2 sequences left out" in capsys.readouterr().err
    assert result["left_out"] == 2
    texts = [draw_bases(70 + index, "row", index) for index in range(9)]
    rows = {(row["group"], row["context"]): row for row in result["rows"]}
    assert set(rows) == {(group, length) for group in ("all", "k0", "k1") for length in (20, 60)}
    for (group, length), row in rows.items():
        own = texts if group == "all" else texts[int(group[1]) :: 2]
        shares = [share(greedy(tiny_model, t[-length - 7 : -7], 7), t[-7:]) for t in own]
        counted = [share(continue_by_counts(t[-length - 7 : -7], 7), t[-7:]) for t in own]
        assert row["windows"] == len(own)
        assert row["accuracy"] == pytest.approx(np.mean(shares), abs=1e-6)
        assert row["markov"] == pytest.approx(np.mean(counted), abs=1e-6)
        assert row["gain"] == pytest.approx(np.mean(shares) - np.mean(counted), abs=2e-6)
        for name in ("accuracy", "markov", "gain"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert continuation_page(result)


def test_a_continuation_does_not_depend_on_others(tiny_model: StripedHyena2) -> None:
    contexts = [draw_bases(33, "context", index) for index in range(ROWS + 5)]
    together = Writer(tiny_model, 33, 12)
    written = together.write(contexts[:ROWS]) + together.write(contexts[ROWS:])
    alone = [Writer(tiny_model, 33, 12).write([context])[0] for context in contexts]
    assert written == alone
    assert [text.encode() for text in alone[:3]] == [
        greedy(tiny_model, context, 12) for context in contexts[:3]
    ]


@pytest.mark.parametrize("letters", ["AC", "ACG", "ACGT"])
@pytest.mark.parametrize("length", [1, 3, 8, 9, 30, 100, 400])
def test_the_markov_model_is_that_of_a_plain_loop(letters: str, length: int) -> None:
    """With few letters, contexts of every order occur before."""
    code = {base: ord(letters[index % len(letters)]) for index, base in enumerate(b"ACGT")}
    context = bytes(code[base] for base in draw_bases(length, letters))
    text = context
    for _ in range(20):
        for order in range(min(ORDER, len(text)), -1, -1):
            tail = text[len(text) - order :]
            seen = Counter(
                context[at + order]
                for at in range(len(context) - order)
                if context[at : at + order] == tail
            )
            if seen:
                text += bytes([max(b"ACGT", key=lambda base: seen[base])])
                break
    assert continue_by_counts(context, 20) == text[len(context) :]


def test_windows_of_a_file_are_its_group_and_contexts_share_their_truth(
    tiny_model: StripedHyena2, tmp_path: Path
) -> None:
    genomes = []
    for number in range(2):
        path = tmp_path / f"{number}.fa"
        path.write_bytes(b">a\n%s\n>b\n%s\n" % (draw_bases(90, number), draw_bases(200, number)))
        genomes.append(path)
    options = ContinuationOptions(sources=genomes, contexts="20,60", bases=7, windows=5)
    windows, num_left_out = read_windows(options)
    assert num_left_out == 0
    assert {window.group for window in windows} == set(map(str, genomes))
    for window in windows:
        assert len(window.bases) == 67
        assert window.bases in Path(window.group).read_bytes()
    rows = evaluate(tiny_model, *genomes, windows=5)["rows"]
    assert [(row["group"], row["windows"]) for row in rows[::2]] == [
        ("all", 10),
        (str(genomes[0]), 5),
        (str(genomes[1]), 5),
    ]
    alone = evaluate(tiny_model, genomes[0], windows=5)["rows"]
    assert alone == rows[2:4]


def test_a_killed_run_resumes(
    tiny_model: StripedHyena2, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = table.with_name("x.json")
    whole = evaluate(tiny_model, table, by="kind")
    write = Writer.write
    lengths = []

    def watched(self: Writer, contexts: list[bytes], progress: Any) -> list[str]:
        lengths.append(len(contexts[0]))
        if lengths == [20, 60]:
            raise KeyboardInterrupt
        return write(self, contexts, progress)

    monkeypatch.setattr(Writer, "write", watched)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tiny_model, table, by="kind", output=output)
    assert not output.exists()
    assert evaluate(tiny_model, table, by="kind", output=output) == whole
    assert lengths == [20, 60, 60]
    assert json.loads(output.read_text()) == whole


def test_what_is_not_a_number_is_not_counted(tiny_model: StripedHyena2, table: Path) -> None:
    broken = StripedHyena2(tiny_model.config).double().eval()
    broken.load_state_dict(tiny_model.state_dict())
    with torch.no_grad():
        broken.blocks[2].post_norm.scale.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"a context of 20 bases: .*blocks\.2"):
        evaluate(broken, table)


def test_the_command_shows_what_it_writes(table: Path, checkpoint: str, command_line) -> None:
    figure, output = table.with_name("x.png"), table.with_name("x.tsv")
    words = ["--contexts", "20,60", "--bases", "7", "--by", "kind", "--model", checkpoint]
    code, page, _ = command_line(
        "eval", "continuation", str(table), *words, "-O", str(output), "--plot", str(figure)
    )
    assert code == 0
    assert figure.read_bytes().startswith(b"\x89PNG")
    header, *lines = (line.split("\t") for line in output.read_text().splitlines())
    assert len(lines) == 6
    assert f"{float(lines[0][header.index('accuracy')]):.3f}" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"contexts": "20,x"}, "--contexts x: not a length"),
        ({"contexts": "200"}, "has no sequence that ends in 207 bases A, C, G and T"),
        ({"bases": 0}, "--bases 0: must be at least 1"),
        (
            {"windows": 3},
            "--windows 3: applies only to FASTA; all rows of the table .*windows.tsv are",
        ),
        ({"column": "seq"}, "has no column 'seq'; its columns: kind, sequence"),
        ({"by": "group"}, "has no column 'group'"),
        ({"column": "kind"}, "line 2: kind 'k0' is not a sequence of bases"),
        ({"output": Path("x.csv")}, r"--output x.csv: needs the suffix"),
    ],
)
def test_what_cannot_be_is_one_line(
    tiny_model: StripedHyena2, table: Path, words: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(tiny_model, table, **words)


def test_a_group_may_be_called_all(tiny_model: StripedHyena2, table: Path) -> None:
    table.write_text(table.read_text().replace("k0", "all"))
    rows = evaluate(tiny_model, table, contexts="20", by="kind")["rows"]
    assert [(row["group"], row["windows"]) for row in rows] == [("all", 9), ("all", 5), ("k1", 4)]


def test_windows_have_a_bound(command_line) -> None:
    code, _, errors = command_line("eval", "continuation", "x.fa", "--windows", "100000000000")
    assert code == 2
    assert "--windows 100000000000: must be less than or equal to 1000000" in errors


def test_a_file_is_named_once(tiny_model: StripedHyena2, table: Path) -> None:
    with pytest.raises(UserError, match=r"windows\.tsv: is given twice; give it once"):
        evaluate(tiny_model, table, table)


def test_names_are_text_in_figures_and_pages(tiny_model: StripedHyena2, table: Path) -> None:
    """A $ begins no formula, a bracket no style, and a byte that is no UTF-8 is shown as such."""
    name = b"$\\frac$ [/b] \xff"
    table.write_bytes(table.read_bytes().replace(b"k0", name))
    plot = table.with_name("x.svg")
    result = evaluate(tiny_model, table, by="kind", plot=plot)
    assert os.fsdecode(name) in {row["group"] for row in result["rows"]}
    assert plot.stat().st_size > 0


def test_an_output_never_replaces_its_input(tiny_model: StripedHyena2, table: Path) -> None:
    before = table.read_bytes()
    with pytest.raises(UserError, match="would overwrite"):
        evaluate(tiny_model, table, output=table)
    assert table.read_bytes() == before


def test_a_fasta_has_no_columns(tiny_model: StripedHyena2, tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\n" + draw_bases(100, 1) + b"\n")
    with pytest.raises(UserError, match=r"--by kind: .*x\.fa is a FASTA"):
        evaluate(tiny_model, path, by="kind")
    with pytest.raises(UserError, match=r"no contig holds a window of 307 bases"):
        evaluate(tiny_model, path, contexts="300")
