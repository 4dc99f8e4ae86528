"""Outputs that appear whole or not at all, and the journal that a stopped run goes on from."""

from pathlib import Path

import pysam
import pytest

from evo2cli.errors import UserError
from evo2cli.files import open_output
from evo2cli.journal import open_journal
from evo2cli.tables import cell, rounded

KEYS = [f"record {number}" for number in range(20)]


def squares(
    output: Path, settings: list, *, stop_after: int | None = None, restart: bool = False
) -> tuple[list, int]:
    """Every key's number squared through the journal, and how many had to be computed."""
    num_computed, found = 0, []

    def compute(number: int) -> list:
        nonlocal num_computed
        if num_computed == stop_after:
            raise KeyboardInterrupt
        num_computed += 1
        return [number**2, number / 3, None]

    with open_journal(output, settings, restart=restart) as recall:
        for number, key in enumerate(KEYS):
            found.append(recall(key, lambda number=number: compute(number)))
    return found, num_computed


TORN = [b"", b'["record 7", [4', b'["record 7", [49, 2.0, null]]', b"5\n", b"{}\n", b"[" * 9**5]


@pytest.mark.parametrize("torn", TORN, ids=lambda torn: torn[:10])
@pytest.mark.parametrize("stop_after", [0, 7, 19])
def test_a_stopped_run_goes_on_and_finds_the_same(tmp_path, capsys, stop_after, torn):
    expected, _ = squares(tmp_path / "straight", ["a"])
    output, journal = tmp_path / "x.vcf", tmp_path / "x.vcf.journal"
    with pytest.raises(KeyboardInterrupt):
        squares(output, ["a"], stop_after=stop_after)
    journal.write_bytes(journal.read_bytes() + torn)
    assert squares(output, ["a"]) == (expected, len(KEYS) - stop_after)
    assert "warning" not in said(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_stopped_twice_keeps_both_parts(tmp_path):
    expected, _ = squares(tmp_path / "straight", [])
    for stop_after in (5, 6):
        with pytest.raises(KeyboardInterrupt):
            squares(tmp_path / "x", [], stop_after=stop_after)
    assert squares(tmp_path / "x", []) == (expected, len(KEYS) - 11)


def test_a_journal_of_other_settings_or_other_records_is_not_used_and_a_warning_says_so(
    tmp_path, capsys
):
    output = tmp_path / "x.vcf"
    for settings, restart in ((["window", 20], False), (["window", 10], True)):
        with pytest.raises(KeyboardInterrupt):
            squares(output, ["window", 10], stop_after=7)
        assert squares(output, settings, restart=restart)[1] == len(KEYS)
        assert "x.vcf.journal: 7 results of a run with other" in said(capsys)
    with pytest.raises(KeyboardInterrupt):
        squares(output, [], stop_after=7)
    with open_journal(output, []) as recall:
        assert recall(KEYS[0], lambda: "fresh") == [0, 0.0, None]
        assert recall("another record", lambda: "fresh") == "fresh"
    assert "x.vcf.journal: 6 results of a run with other" in said(capsys)


@pytest.mark.parametrize("restart", [False, True])
def test_a_file_that_is_not_a_journal_is_kept(tmp_path, restart):
    (tmp_path / "x.journal").write_text("Monday: 7 plates\n")
    with pytest.raises(UserError, match=r"x\.journal: is not a journal; move it"):
        squares(tmp_path / "x", [], restart=restart)
    assert (tmp_path / "x.journal").read_text() == "Monday: 7 plates\n"


def said(capsys) -> str:
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("settings", [["other"], ["same"]])
def test_a_journal_that_was_begun_anew_is_gone_on_from(tmp_path, settings):
    for begun, restart in ((["same"], False), (settings, settings == ["same"])):
        with pytest.raises(KeyboardInterrupt):
            squares(tmp_path / "x", begun, stop_after=7, restart=restart)
    assert squares(tmp_path / "x", settings)[1] == len(KEYS) - 7


def write_half(path: Path) -> None:
    with open_output(path) as write:
        write(b"half")
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["x.vcf", "x.vcf.gz"])
def test_an_output_appears_whole_or_not_at_all(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"what was there before")
    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_bytes() == b"what was there before"
    with open_output(path) as write:
        write(b"one\n")
        write(b"two\n")
    with pysam.BGZFile(str(path)) if name.endswith(".gz") else path.open("rb") as file:
        assert file.read() == b"one\ntwo\n"
    assert list(tmp_path.iterdir()) == [path]


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    path = tmp_path / "missing" / "x.vcf"
    with pytest.raises(UserError, match="cannot be written"), open_output(path):
        pass
    with pytest.raises(UserError, match="cannot be written"), open_journal(path, []):
        pass


def test_numbers_are_shown_to_a_millionth_and_never_as_minus_zero():
    assert cell(rounded(-1234.56789012)) == "-1234.567890"
    assert cell(rounded(-1e-9)) == "0.000000"
    assert cell(None) == "."
    assert cell(7) == "7"
