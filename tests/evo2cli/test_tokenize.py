"""Tokens give the genome back, splits do not leak, and a second run changes nothing."""

import bz2
import errno
import gzip
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from Bio import bgzf
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.data.jsonl import read_texts
from evo2cli.data.letters import count_bytes
from evo2cli.data.splits import SplitRule
from evo2cli.data.token_writer import TokenWriter
from evo2cli.data.tokens import TokenSet
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import reverse_complement
from evo2cli.genome.fasta import read_records
from evo2cli.tokenize import pieces
from evo2cli.tokenize.options import TokenizeOptions
from evo2cli.tokenize.pieces import Piece, cut_into_pieces
from evo2cli.tokenize.reader import PieceReader
from evo2cli.tokenize.run import _Run, tokenize_files
from evo2cli.workers import Task
from tests.ranks import Hold, World


def tokenize(files: Sequence[Path], output: Path, **options: Any) -> dict[str, Any]:
    return tokenize_files(TokenizeOptions(files=tuple(files), output=output, **options))


def write_fasta(path: Path, sequences: dict[str, bytes]) -> Path:
    path.write_bytes(b"".join(b">" + n.encode() + b"\n" + s + b"\n" for n, s in sequences.items()))
    return path


def random_sequences(count: int, length: int = 200, seed: int = 0) -> dict[str, bytes]:
    random = np.random.default_rng(seed)
    letters = np.frombuffer(b"ACGTacgtN", np.uint8)
    return {f"s{i}": letters[random.integers(0, 9, length + i)].tobytes() for i in range(count)}


def documents(folder: Path) -> dict[str, list[bytes]]:
    """Every document of every split, read back through the index."""
    tokens, found = TokenSet.open(folder), {}
    for name in tokens.splits:
        split = tokens.split(name)
        pairs = zip(split.offsets[:-1], split.offsets[1:], strict=True)
        found[name] = [split.tokens[a:b].tobytes() for a, b in pairs]
        assert all(document.endswith(b"\0") for document in found[name])
        found[name] = [document[:-1] for document in found[name]]
    return found


def test_every_base_comes_back(tmp_path: Path) -> None:
    sequences = random_sequences(60)
    file = write_fasta(tmp_path / "g.fa", sequences)
    manifest = tokenize([file], tmp_path / "t", valid_fraction=0.2, test_fraction=0.2)
    found = documents(tmp_path / "t")
    assert set(found) == {"train", "valid", "test"}
    assert sorted(document for split in found.values() for document in split) == sorted(
        sequences.values()
    )
    assert sum(s["bases"] for s in manifest["splits"].values()) == sum(map(len, sequences.values()))
    assert manifest["letters"]["N"] == sum(s.count(b"N") for s in sequences.values())


def test_the_split_follows_the_content(tmp_path: Path) -> None:
    sequences = random_sequences(200)
    both = {**sequences, **{f"rc{n}": reverse_complement(s) for n, s in sequences.items()}}
    shuffled = dict(sorted(both.items(), key=lambda item: item[1]))
    for folder, content in (("a", both), ("b", shuffled)):
        file = write_fasta(tmp_path / f"{folder}.fa", content)
        tokenize([file], tmp_path / folder, valid_fraction=0.3)
    first, second = documents(tmp_path / "a"), documents(tmp_path / "b")
    assert {name: sorted(d) for name, d in first.items()} == {
        n: sorted(d) for n, d in second.items()
    }
    valid = set(first["valid"])
    assert 0.15 < len(valid) / len(both) < 0.45
    assert all(reverse_complement(sequence) in valid for sequence in valid)
    assert not valid & set(first["train"])


def test_validation_files_are_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sequences = random_sequences(10)
    leaked = reverse_complement(sequences["s3"]).lower()
    train = write_fasta(tmp_path / "train.fa", sequences)
    valid = write_fasta(tmp_path / "valid.fa", {"v": leaked})
    tokenize([train], tmp_path / "t", valid=[valid])
    found = documents(tmp_path / "t")
    assert found["valid"] == [leaked]
    assert sequences["s3"] not in found["train"]
    assert len(found["train"]) == 9
    assert "1 training sequence left out of train" in capsys.readouterr().err


def write_jsonl(path: Path, texts: Sequence[str]) -> Path:
    raw = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@pytest.mark.parametrize("name", ["g.jsonl", "g.jsonl.gz"])
def test_json_lines_keep_case_and_tags(tmp_path: Path, name: str) -> None:
    texts = ["|d__Bacteria;p__Bacillota|ACGTacgtU", "ACGTN@acgt#AC", "", "é"]
    file = write_jsonl(tmp_path / name, texts)
    manifest = tokenize([file], tmp_path / "t", valid_fraction=0)
    expected = [text.encode() for text in texts if text]
    assert documents(tmp_path / "t") == {"train": expected}
    assert manifest["sources"][0]["name"] == name
    assert manifest["letters"]["|"] == 2
    rows = (tmp_path / "t" / "documents.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[:3] for row in rows] == [
        ["train", str(index), line] for index, line in enumerate("124")
    ]


def test_json_lines_and_fasta_of_the_same_give_the_same_tokens(tmp_path: Path) -> None:
    sequences = random_sequences(60)
    fasta = write_fasta(tmp_path / "g.fa", sequences)
    lines = write_jsonl(tmp_path / "g.jsonl", [text.decode() for text in sequences.values()])
    first = tokenize([fasta], tmp_path / "a", valid_fraction=0.3, reverse_complement=True)
    again = tokenize([lines], tmp_path / "b", valid_fraction=0.3, reverse_complement=True)
    assert first["splits"] == again["splits"]
    assert first["letters"] == again["letters"]


def test_json_lines_that_are_broken_or_tagged_are_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "g.jsonl.gz", ["ACGT"])
    file.write_bytes(file.read_bytes() + gzip.compress(b'\n{"text": '))
    with pytest.raises(UserError, match=r"g\.jsonl\.gz: line 2: broken JSON"):
        tokenize([file], tmp_path / "t")
    file = write_jsonl(tmp_path / "h.jsonl", ["ACGT", "|d__x|ACGT"])
    with pytest.raises(UserError, match=r"h\.jsonl: document 2 has a tag"):
        tokenize([file], tmp_path / "t", reverse_complement=True)
    assert not (tmp_path / "t").exists()


def test_both_strands(tmp_path: Path) -> None:
    file = write_fasta(tmp_path / "g.fa", {"a": b"ACGTN", "b": b"ggga"})
    tokenize([file], tmp_path / "t", valid_fraction=0, reverse_complement=True)
    assert documents(tmp_path / "t")["train"] == [b"ACGTN", b"NACGT", b"ggga", b"tccc"]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    file = write_fasta(tmp_path / "g.fa", random_sequences(20))
    for folder in "ab":
        tokenize([file], tmp_path / folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_a_second_run_leaves_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_fasta(tmp_path / "g.fa", random_sequences(3))
    first = tokenize([file], tmp_path / "t")
    written = (tmp_path / "t" / "manifest.json").stat().st_mtime_ns
    assert tokenize([file], tmp_path / "t") == first
    assert (tmp_path / "t" / "manifest.json").stat().st_mtime_ns == written
    assert "already exists" in capsys.readouterr().err
    with pytest.raises(UserError, match="other files or options"):
        tokenize([file], tmp_path / "t", reverse_complement=True)


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    file = write_fasta(tmp_path / "g.fa", {"a": b"ACGT"})
    with pytest.raises(UserError, match="is not a token set"):
        tokenize([file], tmp_path)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (b"ACGTMEFL", "'E' at position 6: this looks like protein"),
        (b"ACG-T", "'-' at position 4: an alignment gap"),
        (b"AC?GT", r"'\?' at position 3: not a nucleotide letter"),
        (b"UU*", r"'\*' at position 3"),
    ],
)
def test_what_is_no_dna_is_named(tmp_path: Path, sequence: bytes, message: str) -> None:
    file = write_fasta(tmp_path / "g.fa", {"fine": b"ACGT", "odd": sequence})
    with pytest.raises(UserError, match=f"g.fa: record 'odd': {message}"):
        tokenize([file], tmp_path / "t")
    assert list(tmp_path.iterdir()) == [file]


def test_rna_is_written_as_dna(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_fasta(tmp_path / "g.fa", {"a": b"ACGUacgu", "b": b"ACGT"})
    tokenize([file], tmp_path / "t", valid_fraction=0)
    assert documents(tmp_path / "t")["train"] == [b"ACGTacgt", b"ACGT"]
    assert "1 RNA record:" in capsys.readouterr().err


def test_an_empty_split_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_fasta(tmp_path / "g.fa", {"a": b"ACGT"})
    tokenize([file], tmp_path / "t", valid_fraction=1e-9)
    assert "the valid split is empty" in capsys.readouterr().err


def test_letters_are_counted_in_any_mixture() -> None:
    for text in (b"", b"ACGT" * 100_000, bytes(range(256)) * 1000):
        expected = np.bincount(np.frombuffer(text, np.uint8), minlength=256)
        assert (count_bytes(text) == expected).all()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_killed_run_starts_over_cleanly(tmp_path: Path, workers: str) -> None:
    file = write_fasta(tmp_path / "g.fa", random_sequences(40, length=100_000))
    command = ["tokenize", str(file), "-o", str(tmp_path / "t"), "--workers", workers]
    killed = World(1, tmp_path, "killed", command, Hold(_Run, "_consume_results", call=2))
    assert killed.end_held(signal.SIGKILL) == [-signal.SIGKILL]
    partial = tmp_path / ".t.partial"
    assert list(partial.rglob("train.bin"))
    assert not (tmp_path / "t").exists()
    codes, said = World(1, tmp_path, "again", command).finish()
    assert codes == [0], said
    tokenize([file], tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / "t" / path.name).read_bytes(), path.name
    assert not partial.exists()


def test_json_is_the_manifest(tmp_path: Path) -> None:
    file = write_fasta(tmp_path / "g.fa", {"a": b"ACGT"})
    arguments = ["tokenize", str(file), "-o", str(tmp_path / "t"), "--json"]
    for _ in ("made", "already there"):
        result = CliRunner().invoke(app, arguments)
        assert json.loads(result.stdout) == TokenSet.open(tmp_path / "t").manifest


def test_stdin_and_pipes_give_what_the_file_gives(tmp_path: Path) -> None:
    file = write_fasta(tmp_path / "g.fa", random_sequences(5))
    tokenize([file], tmp_path / "file", valid_fraction=0)
    command = [sys.executable, "-m", "evo2cli", "tokenize", "-", "-o", str(tmp_path / "stdin")]
    subprocess.run([*command, "--valid-fraction", "0"], input=file.read_bytes(), check=True)
    os.mkfifo(tmp_path / "pipe")
    feeder = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(file.read_bytes()))
    feeder.start()
    tokenize([tmp_path / "pipe"], tmp_path / "fifo", valid_fraction=0)
    feeder.join()
    expected = documents(tmp_path / "file")
    assert documents(tmp_path / "stdin") == documents(tmp_path / "fifo") == expected


def test_files_without_a_base_are_refused(tmp_path: Path) -> None:
    file = write_fasta(tmp_path / "g.fa", {"a": b"", "b": b" "})
    with pytest.raises(UserError, match=r"g\.fa: no record has a base"):
        tokenize([file], tmp_path / "t")
    assert list(tmp_path.iterdir()) == [file]


def test_oddities_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "g.fa").write_bytes(b">a\nACGT\n>\n>a 2\nGGT\n>a 3\nGGA\n")
    tokenize([tmp_path / "g.fa"], tmp_path / "t")
    told = capsys.readouterr().err
    assert "1 empty record skipped" in told
    assert "2 records repeat a name" in told


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_fasta(tmp_path / "g.fa", {"a": b"ACGT"})

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TokenWriter, "add", fail)
    with pytest.raises(UserError, match=r"t: cannot be written \(No space left on device"):
        tokenize([file], tmp_path / "t")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("taken", ["g.fa", ".", "g.fa/t"])
def test_a_place_that_is_taken_is_named(tmp_path: Path, taken: str) -> None:
    file = write_fasta(tmp_path / "g.fa", {"a": b"ACGT"})
    with pytest.raises(UserError, match=taken):
        tokenize([file], tmp_path / taken)
    assert file.read_bytes() == b">a\nACGT\n"


def test_the_awkward_files(shared: Path, tmp_path: Path) -> None:
    outcomes = {}
    for file in sorted((shared / "data" / "zoo").glob("*/*")):
        result = CliRunner().invoke(app, ["tokenize", str(file), "-o", str(tmp_path / file.name)])
        if result.exit_code:
            assert isinstance(result.exception, UserError), (file.name, result.exception)
            assert file.name in str(result.exception)
        else:
            bases = sum(len(record.sequence) for record in read_records(file))
            assert (
                sum(len(d) for split in documents(tmp_path / file.name).values() for d in split)
                == bases
            )
        outcomes[file.name] = result.exit_code
    assert outcomes["hg19mini.fasta"] == outcomes["crlf.fasta"] == outcomes["derived_rna.fa"] == 0
    assert (
        outcomes["bp_aster.pro"] == outcomes["fastqs.fq"] == outcomes["biotite_invalid.fasta"] == 1
    )


def test_valid_takes_every_file_a_pattern_gives(tmp_path: Path) -> None:
    for number, sequence in enumerate(random_sequences(4).values()):
        write_fasta(tmp_path / f"{number}.fa", {"s": sequence})
    files = [str(tmp_path / f"{number}.fa") for number in range(4)]
    orders = [
        [*files[:2], "--valid", *files[2:], "-o"],
        ["--valid", *files[2:], "--test-fraction", "0", *files[:2], "-o"],
        [*files[:2], f"--valid={files[2]}", files[3], "-o"],
        [files[0], "--valid", files[2], files[3], "--reverse-complement", files[1], "-o"],
    ]
    for number, order in enumerate(orders):
        folder = tmp_path / f"t{number}"
        assert CliRunner().invoke(app, ["tokenize", *order, str(folder)]).exit_code == 0
        found = documents(folder)
        strands = 2 if "--reverse-complement" in order else 1
        assert [len(found[split]) for split in ("train", "valid")] == [2 * strands, 2 * strands]


def mixed_inputs(folder: Path) -> list[Path]:
    """Files of every kind, some of which are cut into many pieces of 1,000 bytes."""
    few, many = random_sequences(3, 5000), random_sequences(60, 90, 60)
    files = [
        write_fasta(folder / "few.fa", few),
        write_fasta(folder / "many.fa", {**many, "u": b"ACGUu", "empty": b""}),
        write_fasta(folder / "windows.fa", {f"{n} {n}": s for n, s in many.items()}),
        write_fasta(folder / "small.fa", {"a": b"ACGT"}),
        write_jsonl(folder / "lines.jsonl", [f"|d__x;p__{n}|ACGT{'acgt' * n}" for n in range(50)]),
        write_jsonl(folder / "lines.jsonl.gz", ["ACGT" * n for n in range(50)]),
    ]
    files[2].write_bytes(files[2].read_bytes().replace(b"\n", b"\r\n"))
    with (folder / "few.fa").open("ab") as file:
        file.write(b"".join(b">s0 again\n\n%s\n" % text for text in many.values()))
    for name, compress in (("a.fa.gz", gzip.compress), ("b.fa.bz2", bz2.compress)):
        (folder / name).write_bytes(compress(files[0].read_bytes()))
    with bgzf.BgzfWriter(folder / "c.fa.gz") as compressed:
        compressed.write(files[1].read_bytes())
    old = b">a\r" + (b"ACGT" * 20 + b"\r") * 14_000 + b"\n>b\rGATTACA\r\n>c\rGGG\r"
    (folder / "old.fa").write_bytes(old)
    return [*files, *(folder / name for name in ("a.fa.gz", "b.fa.bz2", "c.fa.gz", "old.fa"))]


def assert_same_files(folder: Path, other: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {path.name for path in other.iterdir()}
    for path in folder.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def without_progress(messages: str) -> str:
    lines = [line for line in messages.splitlines() if line.startswith("evo2: ")]
    return "\n".join(line for line in lines if "per second" not in line)


def test_workers_write_the_bytes_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And report the same, however the files are cut."""
    files = mixed_inputs(tmp_path)
    held_out = random_sequences(60, 90, 60)
    kept = [held_out[f"s{n}"] for n in range(0, 60, 7)]
    valid = [
        write_fasta(tmp_path / "v.fa", dict(zip("abcdefghi", kept, strict=True))),
        write_jsonl(tmp_path / "v.jsonl", ["ACGTACGT"]),
    ]
    usual = {"valid": valid, "valid_fraction": 0.1, "test_fraction": 0.2}
    tokenize(files, tmp_path / "whole", **usual)
    said = without_progress(capsys.readouterr().err)
    assert "records repeat a name" in said
    assert "in the validation files as well" in said
    monkeypatch.setattr(pieces, "PIECE", 1000)
    for workers in (1, 3):
        folder = tmp_path / f"by{workers}"
        tokenize(files, folder, **usual, workers=workers)
        assert without_progress(capsys.readouterr().err) == said
        assert_same_files(folder, tmp_path / "whole")
    assert not list(tmp_path.glob(".*"))
    assert tokenize(files, folder, **usual, workers=2) == TokenSet.open(folder).manifest


def test_a_worker_imports_only_what_its_tasks_need(tmp_path: Path) -> None:
    """Every one of N processes does so, before its first piece."""
    file = write_fasta(tmp_path / "g.fa", random_sequences(2))
    options = TokenizeOptions(files=(file,), output=tmp_path / "t", workers=2)
    with TokenWriter(options.output) as writer:
        tasks = list(islice(_Run(options, SplitRule(0, 0), writer)._tasks(), 2))
    code = "import pickle, sys; pickle.load(sys.stdin.buffer); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(tasks), capture_output=True, check=True
    )
    imported = {module.partition(".")[0] for module in result.stdout.decode().split()}
    assert "numpy" in imported
    assert not imported & {"Bio", "pydantic", "pysam", "rich", "torch", "typer", "yaml"}


@given(
    st.lists(st.sampled_from([b">", b"\n", b"\r\n", b"a", b"ACGT", b"|x y|", b" ", b">b c"])),
    st.integers(1, 9),
)
def test_pieces_have_the_records_of_the_whole(words: list[bytes], size: int) -> None:
    text = b">x\n" + b"".join(words)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = Path(folder) / "g.fa"
        file.write_bytes(text)
        patch.setattr(pieces, "PIECE", size)
        patch.setattr(pieces, "_BLOCK", 3)
        spans = [piece.span for piece in cut_into_pieces([file])]
        assert [record for span in spans for record in read_records(file, None, span)] == list(
            read_records(file)
        )


@given(st.lists(st.sampled_from(["", " ", '{"text": "ACGT"}', '{"text": "a", "b": 1}'])))
def test_pieces_have_the_lines_of_the_whole(lines: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = Path(folder) / "g.jsonl"
        file.write_text("\n".join(['{"text": "first"}', *lines]))
        patch.setattr(pieces, "PIECE", 20)
        patch.setattr(pieces, "_BLOCK", 3)
        spans = [piece.span for piece in cut_into_pieces([file])]
        assert [text for span in spans for text in read_texts(file, None, span)] == list(
            read_texts(file)
        )


@pytest.mark.parametrize("broken", ["g.fa", "g.jsonl", "g.fa.gz"])
def test_workers_report_the_first_error_of_the_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    monkeypatch.setattr(pieces, "PIECE", 1000)
    good = write_fasta(tmp_path / "good.fa", random_sequences(200))
    if broken == "g.jsonl":
        bad = write_jsonl(tmp_path / broken, ["ACGT"] * 999)
        bad.write_bytes(bad.read_bytes() + b"\nno\n")
    else:
        bad = write_fasta(tmp_path / broken, {**random_sequences(20), "odd": b"AC?T"})
    if broken == "g.fa.gz":
        bad.write_bytes(gzip.compress(bad.read_bytes())[:-9])
    worse = write_fasta(tmp_path / "worse.fa", {"worse": b"MELF"})
    told = []
    for workers in (1, 2):
        with pytest.raises(UserError, match=broken) as caught:
            tokenize([good, bad, worse], tmp_path / "t", workers=workers)
        told.append(str(caught.value))
        assert {path.name for path in tmp_path.iterdir()} == {"good.fa", broken, "worse.fa"}
    assert told[0] == told[1]


def die(_advance: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_fasta(tmp_path / "g.fa", random_sequences(100))
    task_of = _Run._read_task

    def some_die(run: _Run, reader: PieceReader, piece: Piece) -> Task:
        task = task_of(run, reader, piece)
        return die if run._num_tasks == 9 else task

    monkeypatch.setattr(_Run, "_read_task", some_die)
    monkeypatch.setattr(pieces, "PIECE", 1000)
    told = "--workers 2: a worker failed: its process was ended by SIGKILL; nothing was written"
    with pytest.raises(UserError, match=told) as caught:
        tokenize([file], tmp_path / "t", workers=2)
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == [file]


def test_workers_do_not_share_a_stream(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--workers 2: one process must read -; give a file"):
        tokenize([Path("-")], tmp_path / "t", workers=2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "last_line"),
    [(signal.SIGINT, "evo2: interrupted"), (signal.SIGTERM, "evo2: ended by SIGTERM")],
)
def test_a_signal_to_all_workers_is_quiet_and_leaves_nothing(
    tmp_path: Path, number: signal.Signals, last_line: str
) -> None:
    file = write_fasta(tmp_path / "g.fa", random_sequences(400, length=400_000))
    command = [sys.executable, "-m", "evo2cli", "tokenize", str(file), "-o", str(tmp_path / "t")]
    command += ["--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
    while not list(tmp_path.rglob("train.bin")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, number)  # as a terminal or a batch system does
    _, told = process.communicate(timeout=60)  # the workers have closed it, too
    assert process.returncode == 128 + number
    assert told.decode().splitlines()[-1] == last_line
    assert b"Traceback" not in told
    assert list(tmp_path.iterdir()) == [file]
