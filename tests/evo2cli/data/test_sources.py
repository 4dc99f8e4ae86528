"""One set of documents gives one stream, however it is stored; what is broken is named."""

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.data.documents import Documents
from evo2cli.data.jsonl import read_texts
from evo2cli.data.sources import open_held_out, open_source
from evo2cli.data.token_writer import Document, TokenWriter
from evo2cli.errors import UserError

CODES = {"u1": 1, "i1": 2, "i2": 3, "i4": 4, "i8": 5, "u2": 8}

texts = st.text("ACGTacgtN|_;@# ", min_size=1, max_size=30)
any_texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20
)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user cache"))


def fresh(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def write_tokens(folder: Path, documents: Sequence[bytes], valid: Sequence[bytes] = ()) -> Path:
    with TokenWriter(folder) as writer:
        for split, group in (("train", documents), ("valid", valid)):
            for text in group:
                writer.add(split, Document("a", "g.fa", "+", text, ""))
        writer.finish({})
    return folder


def write_megatron(
    prefix: Path,
    documents: Sequence[Sequence[bytes]],
    *,
    dtype: str = "u2",
    modes: bool = False,
) -> Path:
    """A set as Megatron-core (with modes) or Savanna writes it, from lists of sequences."""
    sequences = [np.frombuffer(text, np.uint8).astype(dtype) for one in documents for text in one]
    prefix.with_name(prefix.name + ".bin").write_bytes(b"".join(s.tobytes() for s in sequences))
    sizes = np.array([len(s) for s in sequences], np.int32)
    pointers = np.cumsum([0, *sizes])[:-1] * np.dtype(dtype).itemsize
    borders = np.cumsum([0, *map(len, documents)])
    parts = [
        struct.pack("<9sQBQQ", b"MMIDIDX\0\0", 1, CODES[dtype], len(sizes), len(borders)),
        sizes.tobytes(),
        pointers.astype(np.int64).tobytes(),
        borders.astype(np.int64).tobytes(),
        bytes(len(sizes)) if modes else b"",
    ]
    prefix.with_name(prefix.name + ".idx").write_bytes(b"".join(parts))
    return prefix


def write_jsonl(path: Path, documents: Sequence[str], **options: bool) -> Path:
    lines = [json.dumps({"id": at, "text": text}, **options) for at, text in enumerate(documents)]  # type: ignore[arg-type]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def opened(path: Path) -> Documents:
    documents = open_source(path, "train")
    assert documents is not None
    return documents


def assert_stream(documents: Documents, expected: Sequence[bytes]) -> None:
    stream = b"".join(text + b"\0" for text in expected)
    assert documents.num_tokens == len(stream)
    assert documents.num_documents == len(expected)
    assert documents.offsets.tolist() == np.cumsum([0, *(len(t) + 1 for t in expected)]).tolist()
    assert documents.read(0, len(stream)).tobytes() == stream
    for start in range(0, len(stream) + 1, max(1, len(stream) // 40)):
        for count in {0, 1, 5, len(stream) - start} & {*range(len(stream) - start + 1)}:
            found = documents.read(start, count)
            assert found.dtype == np.uint8
            assert found.tobytes() == stream[start : start + count]
    for start, count in ((-1, 1), (0, len(stream) + 1), (len(stream), 1)):
        with pytest.raises(ValueError, match="of a stream of"):
            documents.read(start, count)


@given(
    documents=st.lists(texts, min_size=1, max_size=8),
    dtype=st.sampled_from(sorted(CODES)),
    modes=st.booleans(),
    stored_end=st.booleans(),
    data=st.data(),
)
def test_every_kind_of_source_gives_the_same_stream(
    tmp_path: Path,
    documents: list[str],
    dtype: str,
    modes: bool,
    stored_end: bool,
    data: st.DataObject,
) -> None:
    folder = fresh(tmp_path)
    expected = [text.encode() for text in documents]
    assert_stream(opened(write_tokens(folder / "t", expected)), expected)
    assert_stream(opened(write_jsonl(folder / "t.jsonl", documents)), expected)
    sequences = []
    for text in expected:
        cut = data.draw(st.integers(0, len(text)))
        whole = text + b"\0" * stored_end
        sequences.append(data.draw(st.sampled_from([[whole], [whole[:cut], b"", whole[cut:]]])))
    prefix = write_megatron(folder / "m.x_text_document", sequences, dtype=dtype, modes=modes)
    for suffix in ("", ".bin", ".idx"):
        assert_stream(opened(prefix.with_name(prefix.name + suffix)), expected)


@given(documents=st.lists(any_texts, min_size=1, max_size=6), ascii_only=st.booleans())
def test_json_escapes_come_back_as_utf_8(
    tmp_path: Path, documents: list[str], ascii_only: bool
) -> None:
    file = write_jsonl(fresh(tmp_path) / "t.jsonl", documents, ensure_ascii=ascii_only)
    expected = [text.encode() for text in documents]
    assert_stream(opened(file), expected)
    assert [text for _, text in read_texts(file)] == expected


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (r'{"text": "A\u0043\/\"\\\t\ud83e\uddec"}', 'AC/"\\\t🧬'),
        (r'  { "x" : {"text": "no", "y": [1, "}"]} , "text":"ACGT" , "z":null } ', "ACGT"),
        (r'{"\u0074ext": "ACGT"}', "ACGT"),
        (r'{"text": "no", "text": "ACGT"}', "ACGT"),
        (r'{"note": "\\\"text\": \"no\"", "text": "é|d__x;|AC"}', "é|d__x;|AC"),
        ('{"text": "ACGT"}\r', "ACGT"),
    ],
)
def test_awkward_lines_are_read(tmp_path: Path, line: str, text: str) -> None:
    for end in ("", "\n", "\n\n"):
        file = tmp_path / f"{len(end)}.jsonl"
        file.write_text('{"text": "A"}\n\n' + line + end, encoding="utf-8", newline="")
        assert_stream(opened(file), [b"A", text.encode()])
        assert list(read_texts(file)) == [(1, b"A"), (3, text.encode())]


def test_empty_documents_are_left_out(tmp_path: Path) -> None:
    expected = [b"AC", b"GT"]
    assert_stream(opened(write_jsonl(tmp_path / "t.jsonl", ["", "AC", "", "GT", ""])), expected)
    stored = [[b""], [b"AC\0"], [], [b"\0"], [b"", b"GT"], []]
    assert_stream(opened(write_megatron(tmp_path / "m", stored)), expected)


def test_sequences_of_other_documents_may_lie_anywhere(tmp_path: Path) -> None:
    prefix = write_megatron(tmp_path / "m", [[b"ACG"], [b"TT"]], dtype="u1")
    idx = prefix.with_suffix(".idx")
    raw = bytearray(idx.read_bytes())
    raw[34:58] = struct.pack("<iiqq", 2, 3, 3, 0)  # the second first
    idx.write_bytes(raw)
    assert_stream(opened(prefix), [b"TT", b"ACG"])


def test_only_token_sets_have_a_valid_split(tmp_path: Path) -> None:
    both = write_tokens(tmp_path / "both", [b"ACGT"], [b"TT"])
    valid, train = open_source(both, "valid"), open_source(both, "train")
    assert valid is not None
    assert_stream(valid, [b"TT"])
    assert train is not None
    assert train.facts["manifest"]["splits"]["train"]["bases"] == 4
    assert train.facts["path"] == train.name == str(both)
    assert_stream(open_held_out(both), [b"TT"])
    only = write_tokens(tmp_path / "only", [b"ACGT"])
    assert open_source(only, "valid") is None
    assert_stream(open_held_out(only), [b"ACGT"])
    lines = write_jsonl(tmp_path / "t.jsonl", ["AC"])
    assert open_source(lines, "valid") is None
    assert_stream(open_held_out(lines), [b"AC"])
    assert json.dumps(open_held_out(lines).facts)


def index_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.evo2-index.npy")


def test_an_index_is_made_once_and_again_when_its_file_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_jsonl(tmp_path / "t.jsonl", ["ACGT"])

    def says_index() -> bool:
        return "index t.jsonl" in capsys.readouterr().err

    assert_stream(opened(file), [b"ACGT"])
    assert says_index()
    assert [path.name for path in tmp_path.iterdir()] == ["t.jsonl", "t.jsonl.evo2-index.npy"]
    assert_stream(opened(file), [b"ACGT"])
    assert not says_index()
    write_jsonl(file, ["ACGA"])  # as long as before
    os.utime(file, ns=(1, 1))
    assert_stream(opened(file), [b"ACGA"])
    assert says_index()
    for harm in (b"", b"\x93NUMPY", index_of(file).read_bytes()[:-8], b"x" * 500):
        index_of(file).write_bytes(harm)
        assert_stream(opened(file), [b"ACGA"])
        assert says_index()
    np.save(index_of(file), np.zeros((2, 2)))
    assert_stream(opened(file), [b"ACGA"])


def test_an_index_goes_where_it_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_jsonl(tmp_path / "t.jsonl", ["ACGT"])
    index_of(file).mkdir()  # stands in the way, even of root
    assert_stream(opened(file), [b"ACGT"])
    kept = [path for path in (tmp_path / "user cache").rglob("*") if path.is_file()]
    assert len(kept) == 1
    assert "index t.jsonl" in capsys.readouterr().err
    assert_stream(opened(file), [b"ACGT"])
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert_stream(opened(file), [b"ACGT"])
    assert "its index cannot be cached" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "t.jsonl",
        "t.jsonl.evo2-index.npy",
        "user cache",
    ]


def poke(place: int, value: bytes) -> Callable[[Path], None]:
    """Overwrite a part of an .idx. Two documents: sizes at 34, pointers at 42, borders at 58."""

    def harm(prefix: Path) -> None:
        idx = prefix.with_suffix(".idx")
        raw = bytearray(idx.read_bytes())
        raw[place : place + len(value)] = value
        idx.write_bytes(raw)

    return harm


def cut(suffix: str, change: int) -> Callable[[Path], None]:
    def harm(prefix: Path) -> None:
        file = prefix.with_suffix(suffix)
        raw = file.read_bytes()
        file.write_bytes(raw[:change] if change < 0 else raw + bytes(change))

    return harm


MEGATRON_HARMS = {
    "no bin": (lambda p: p.with_suffix(".bin").unlink(), r"m\.bin: no such file"),
    "no idx": (lambda p: p.with_suffix(".idx").unlink(), r"m\.idx: no such file"),
    "short bin": (cut(".bin", -1), r"m\.bin: 13 bytes, but its index ends at byte 14"),
    "long bin": (cut(".bin", 2), r"m\.bin: 16 bytes, but its index ends at byte 14"),
    "short idx": (cut(".idx", -1), r"m\.idx: 81 bytes, but 2 sequences and 3 document borders"),
    "no header": (cut(".idx", -60), r"m\.idx: not a Megatron index"),
    "magic": (poke(0, b"X"), r"m\.idx: not a Megatron index"),
    "old magic": (poke(0, b"TNTIDX\0\0"), r"m\.idx: has the old TNTIDX layout"),
    "version": (poke(9, b"\2"), r"m\.idx: version 2 of the format"),
    "floats": (poke(17, b"\6"), r"m\.idx: its tokens have dtype code 6"),
    "more sequences": (poke(18, b"\x09"), r"m\.idx: 82 bytes, but 9 sequences"),
    "many sequences": (poke(18, b"\xff" * 8), r"m\.idx: 82 bytes, but 18,446"),
    "negative size": (poke(34, b"\xff" * 4), r"m\.idx: a sequence has a negative length"),
    "pointer past the end": (poke(50, b"\x0a"), r"m\.bin: 14 bytes, but its index ends at byte 16"),
    "odd pointer": (poke(50, b"\x09"), r"m\.idx: a sequence has a negative length or offset"),
    "first border": (poke(58, b"\1"), r"m\.idx: its document borders do not rise from 0 to 2"),
    "last border": (poke(74, b"\3"), r"m\.idx: its document borders do not rise from 0 to 2"),
    "falling borders": (poke(66, b"\5"), r"m\.idx: its document borders do not rise from 0 to 2"),
    "apart": (
        lambda p: (poke(66, b"\2")(p), poke(34, b"\3")(p)),
        r"m\.idx: the sequences of a document are not contiguous",
    ),
}


@pytest.mark.parametrize("harm", MEGATRON_HARMS)
def test_a_damaged_megatron_set_is_named(tmp_path: Path, harm: str) -> None:
    prefix = write_megatron(tmp_path / "m", [[b"ACGT"], [b"TTT"]])
    assert_stream(
        opened(prefix), [b"ACGT", b"TTT"]
    )  # an index kept before the harm must not hide it
    damage, message = MEGATRON_HARMS[harm]
    damage(prefix)
    with pytest.raises(UserError, match=message) as caught:
        opened(prefix)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["u2", "i4", "i2"])
def test_a_token_that_is_no_byte_is_named(tmp_path: Path, dtype: str) -> None:
    prefix = write_megatron(tmp_path / "m", [[b"ACGT\0"], [b"TTT\0"]], dtype=dtype)
    tokens = np.fromfile(prefix.with_suffix(".bin"), dtype)
    for place, value in ((2, 256), (2, 511), (2, -1)):
        if value < 0 and dtype == "u2":
            continue
        changed = tokens.copy()
        changed[place] = value
        changed.tofile(prefix.with_suffix(".bin"))
        documents = opened(prefix)
        assert documents.read(3, 3).tobytes() == b"T\0T"
        with pytest.raises(UserError, match=rf"m\.bin: token 2 is {value}, which is not a byte"):
            documents.read(0, 4)
    tokens[8] = 300
    tokens.tofile(prefix.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"m\.bin: token 8 is 300, which is not a byte"):
        opened(prefix)


JSONL_HARMS = {
    '{"text": "AC': r"line 3: broken JSON at character 10 \(Unterminated string",
    '{"text": "AC"': r"line 3: broken JSON at character 14 \(Expecting ',' delimiter\)",
    '{"text": "AC"} {}': r"line 3: broken JSON at character 16 \(Extra data\)",
    '{"text" "AC"}': r"line 3: broken JSON at character 9 \(Expecting ':' delimiter\)",
    '{"text": "A\tC"}': r"line 3: broken JSON at character 12 \(Invalid control character",
    '{"text": "AC",}': r"line 3: broken JSON at character 1[45]",
    '{1: "AC"}': r"line 3: broken JSON at character 2 \(Expecting property name",
    '["text"]': "line 3: not a JSON object",
    "ACGT": r"line 3: broken JSON at character 1",
    "{}": 'line 3: no key "text"',
    '{"sequence": "AC"}': 'line 3: no key "text"',
    '{"text": 5}': 'line 3: "text" is not a string',
    r'{"text": "\ud83e"}': "line 3: the text contains an unpaired surrogate",
    r'{"text": "A\u0000C"}': "line 3: the text contains the character NUL",
    '{"text": "\udcff"}': "line 3: not UTF-8",
    '{"text": ' + "[" * 100_000: "line 3: its values are nested too deeply",
}


@pytest.mark.parametrize("line", JSONL_HARMS)
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "t.jsonl"
    lines = ['{"text": "A"}', "", line, '{"text": "C"}']
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    for read in (opened, lambda path: list(read_texts(path))):
        with pytest.raises(UserError, match=r"t\.jsonl: " + JSONL_HARMS[line]) as caught:
            read(file)
        assert "\n" not in str(caught.value)
    assert not index_of(file).exists()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


NO_SOURCES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda p: p / "x", r"x: no such file or folder; a source is a folder of"),
    "no token set": (lambda p: p, r"not a token set"),
    "empty": (lambda p: write(p / "x.jsonl", b""), r"x\.jsonl: is empty"),
    "pipe": (lambda p: pipe(p / "x"), r"x: is a pipe or a device, not a file"),
    "text": (lambda p: write(p / "x", b"hello"), r"x: not a known format; a source is"),
    "FASTA": (
        lambda p: write(p / "x.fa", b">a\nAC\n"),
        r"x\.fa: is FASTA; .* evo2 tokenize \S*x\.fa",
    ),
    "compressed": (
        lambda p: write(p / "x.jsonl.gz", gzip.compress(b'{"text": "A"}')),
        r"x\.jsonl\.gz: is compressed, .* first: evo2 tokenize \S+/x\.jsonl\.gz -o x$",
    ),
}


@pytest.mark.parametrize("kind", NO_SOURCES)
def test_what_is_no_source_is_named_with_the_way_out(tmp_path: Path, kind: str) -> None:
    make, message = NO_SOURCES[kind]
    with pytest.raises(UserError, match=message) as caught:
        opened(make(tmp_path))
    assert "\n" not in str(caught.value)
