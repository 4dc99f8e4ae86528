"""What the writer is given the reader gives back, and what is not whole is refused."""

import hashlib
import json
import os
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo2cli.data.splits import SPLITS, SplitRule, content_sha256
from evo2cli.data.token_writer import Document, TokenWriter
from evo2cli.data.tokens import TokenSet
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import LETTERS, reverse_complement
from tests.hostile import hostile, refusal, values

sequences = st.lists(st.sampled_from(list(LETTERS)), min_size=1, max_size=50).map(bytes)


def write(folder: Path, documents: list[tuple[str, bytes]]) -> TokenSet:
    with TokenWriter(folder) as writer:
        for split, sequence in documents:
            writer.add(split, Document("a", "g.fa", "+", sequence, content_sha256(sequence)))
        writer.finish({"made_by": "a test"})
    return TokenSet.open(folder)


@given(st.lists(st.tuples(st.sampled_from(SPLITS), sequences), min_size=1, max_size=20))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, documents: list[tuple[str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("tokens") / "t"
    tokens = write(folder, documents)
    assert tokens.manifest["made_by"] == "a test"
    assert tokens.splits == tuple(name for name in SPLITS if name in dict(documents))
    for name in tokens.splits:
        expected = b"".join(sequence + b"\0" for split, sequence in documents if split == name)
        split, facts = tokens.split(name), tokens.manifest["splits"][name]
        assert split.tokens.dtype == np.uint8
        assert split.offsets.dtype == np.int64
        assert split.tokens.tobytes() == expected
        assert facts["sha256"] == hashlib.sha256(expected).hexdigest()
        starts = [0, *(at + 1 for at, byte in enumerate(expected) if byte == 0)]
        assert split.offsets.tolist() == starts
        assert facts["documents"] == len(starts) - 1
        assert facts["bases"] == len(expected) - facts["documents"]
    rows = (folder / "documents.tsv").read_text().splitlines()[1:]
    assert [row.split("\t")[0] for row in rows] == [split for split, _ in documents]
    assert [int(row.split("\t")[5]) for row in rows] == [len(one) for _, one in documents]


def test_an_unfinished_set_leaves_nothing(tmp_path: Path) -> None:
    with TokenWriter(tmp_path / "t") as writer:
        writer.add("train", Document("a", "g.fa", "+", b"ACGT", ""))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, usual[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "t", [("train", b"ACGT" * 100)] * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".t.partial").mkdir()
    (tmp_path / ".t.partial" / "test.bin").write_bytes(b"half")
    assert write(tmp_path / "t", [("train", b"ACGT")]).splits == ("train",)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def change_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **changes}))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


HARMS = {
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "no JSON": lambda folder: (folder / "manifest.json").write_text("{"),
    "no object": lambda folder: (folder / "manifest.json").write_text("[]"),
    "other format": lambda folder: change_manifest(folder, format=99),
    "no splits": lambda folder: change_manifest(folder, splits=None),
    "no counts": lambda folder: change_manifest(folder, splits={"train": {}}),
    "short bin": lambda folder: (folder / "train.bin").write_bytes(b"A"),
    "no bin": lambda folder: (folder / "train.bin").unlink(),
    "no offsets": lambda folder: (folder / "train.offsets.npy").unlink(),
    "cut offsets": lambda folder: (folder / "train.offsets.npy").write_bytes(b"\x93NUMPY"),
    "deep manifest": lambda folder: (folder / "manifest.json").write_text("[" * 20_000),
    "other split": lambda folder: change_manifest(folder, splits={"../x": {}}),
    "true as count": lambda folder: change_manifest(
        folder, splits={"train": {"documents": True, "bases": "x"}}
    ),
    "pipe for offsets": lambda folder: pipe(folder / "train.offsets.npy"),
    "huge offsets": lambda folder: (folder / "train.offsets.npy").write_bytes(
        (folder / "train.offsets.npy").read_bytes().replace(b"(2,)", b"(9999999999999,)")
    ),
    "other offsets": lambda folder: np.save(folder / "train.offsets.npy", np.array([0, 3, 5])),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_token_set_is_named(tmp_path: Path, harm: str) -> None:
    write(tmp_path / "t", [("train", b"ACGT")])
    HARMS[harm](tmp_path / "t")
    with pytest.raises(UserError, match=str(tmp_path / "t")):
        TokenSet.open(tmp_path / "t")


@hostile
@given(st.sampled_from(["format", "splits", "train", "documents", "bases"]), values(st.none()))
def test_a_manifest_with_any_value_is_read_or_a_line(
    tmp_path: Path, key: str, value: object
) -> None:
    folder = tmp_path / "t"
    if not folder.exists():
        write(folder, [("train", b"ACGT")])
    file = folder / "manifest.json"
    whole = file.read_text()
    manifest = json.loads(whole)
    splits = manifest["splits"]
    place = manifest if key in manifest else splits if key in splits else splits["train"]
    place[key] = value
    try:
        file.write_text(json.dumps(manifest))
        refusal(lambda: TokenSet.open(folder), UserError)
    finally:
        file.write_text(whole)


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no valid split, only train"):
        write(tmp_path / "t", [("train", b"ACGT")]).split("valid")


@given(sequences)
def test_copies_share_a_content_hash(sequence: bytes) -> None:
    shared = content_sha256(sequence)
    assert content_sha256(sequence.swapcase()) == shared
    assert content_sha256(reverse_complement(sequence)) == shared
    assert content_sha256(sequence + b"A") != shared


def test_shares_come_out_as_asked() -> None:
    rule = SplitRule(0.2, 0.1)
    hashes = [hashlib.sha256(bytes([at % 256, at // 256])).hexdigest() for at in range(4000)]
    counts = {name: sum(rule.split(one) == name for one in hashes) for name in SPLITS}
    assert counts["valid"] == pytest.approx(800, abs=120)
    assert counts["test"] == pytest.approx(400, abs=90)
    assert {SplitRule(0, 0).split(one) for one in hashes} == {"train"}
    assert {SplitRule(1, 0).split(one) for one in hashes} == {"valid"}


def test_a_hash_at_a_border_belongs_to_what_follows() -> None:
    """The splits are half-open ranges of the hash: [0, valid), [valid, valid + test), the rest."""
    points = {0x00: "valid", 0x3F: "valid", 0x40: "test", 0x7F: "test", 0x80: "train"}
    for first, split in points.items():
        assert SplitRule(0.25, 0.25).split(f"{first:02x}".ljust(64, "0")) == split
    assert SplitRule(0, 0.5).split("0" * 64) == "test"
    assert SplitRule(0, 0).split("0" * 64) == "train"


@pytest.mark.parametrize("fractions", [(-0.1, 0), (0, -0.1), (0.6, 0.6), (float("nan"), 0)])
def test_impossible_fractions_are_refused(fractions: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="must be at least 0, and their sum at most 1"):
        SplitRule(*fractions)
