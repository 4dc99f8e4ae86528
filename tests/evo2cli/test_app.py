"""What holds for every command: help, codes, and one line for what is wrong."""

import io
import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.table import Table
from typer.testing import CliRunner

from evo2cli import __version__, console
from evo2cli.app import app, main
from evo2cli.errors import TooManySkippedError, UntrustedNumericsError, UserError

COMMANDS = [
    "tokenize",
    "plan",
    "train",
    "launch",
    "extend",
    "score",
    "saturate",
    "embed",
    "generate",
    "convert",
    "info",
    "fetch",
    "doctor",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert "--json" in result.output


def test_the_version_is_shown() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"evo2cli {__version__}\n"


def test_warnings_of_the_floors_below_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    floor = logging.getLogger("stripedhyena2")
    before = [*floor.handlers]
    console.show_warnings()
    logging.getLogger("stripedhyena2.somewhere").warning("mind %s", "this")
    told = [handler for handler in floor.handlers if handler not in before]
    for name in ("stripedhyena2", "hyenakernels"):
        logging.getLogger(name).handlers[-len(told) :] = []
    assert capsys.readouterr().err == "evo2: warning: mind this\n"


def test_codes_are_what_the_readme_says() -> None:
    assert (UserError.exit_code, TooManySkippedError.exit_code) == (2, 3)
    assert UntrustedNumericsError.exit_code == 4


def test_an_exhausted_memory_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exhausted(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. GPU 0 has")

    monkeypatch.setattr("evo2cli.app.app", exhausted)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == UserError.exit_code
    assert capsys.readouterr().err.splitlines()[-1] == (
        "evo2: out of memory (Tried to allocate 9 GiB); use smaller inputs, or --device cpu"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["score", "missing.vcf"],
        ["tokenize", "missing.fa", "-o", "somewhere"],
        ["train", "missing.toml"],
        ["convert", "missing.pt", "somewhere"],
        ["extend", "missing.pt", "--to", "32k", "-O", "somewhere"],
        ["info", "missing"],
        ["generate"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_bad_input_is_one_line_and_code_2(
    command_line: Callable[..., tuple[int, str, str]], arguments: list[str]
) -> None:
    code, data, talk = command_line(*arguments)
    assert (code, data) == (2, "")
    assert talk.startswith("evo2: ")
    assert len(talk.splitlines()) == 1
    assert not Path("somewhere").exists()


def test_a_process_of_its_own_ends_likewise(
    command_line: Callable[..., tuple[int, str, str]],
) -> None:
    command = [sys.executable, "-m", "evo2cli", "info", "missing"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == command_line("info", "missing")


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        (">&-", 2, "evo2: stdout: is closed"),
        (">/dev/full", 2, "evo2: stdout: No space left on device"),
        ("2>&-", 0, ""),
    ],
)
def test_streams_that_are_closed_or_full(
    tmp_path: Path, redirection: str, code: int, told: str
) -> None:
    (tmp_path / "s.fa").write_text(">s\nACGTACGT\n")
    command = f"{sys.executable} -m evo2cli score {tmp_path / 's.fa'} {redirection}"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == code
    assert "Traceback" not in result.stderr
    assert told in result.stderr
    assert (result.stdout != "") == (code == 0)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_names_of_any_bytes_are_written_in_any_locale(
    tmp_path: Path,
    encoding: str,
    command_line: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A command line for a shell has the bytes of the name; a page may have escapes."""
    name = os.fsdecode("x\u00e9".encode() + b"\xff.toml")
    shutil.copy(Path(__file__).parents[2] / "recipes" / "toy.toml", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    shown = {"utf-8": "x\u00e9".encode(), "latin-1": b"x\xe9", "ascii": rb"x\xe9"}[encoding]
    for command, expected in (
        (["launch", name, "--local", "1", "--dry-run", "--device", "cpu"], os.fsencode(name)),
        (["plan", name], shown + b"\xff.toml"),
        (["info", name], shown + b"\xff.toml"),
    ):
        # As Python opens the streams of a process in such a locale.
        written, told = io.BytesIO(), io.BytesIO()
        out = io.TextIOWrapper(written, encoding=encoding, errors="strict")
        err = io.TextIOWrapper(told, encoding=encoding, errors="backslashreplace")
        with monkeypatch.context() as streams:
            streams.setattr(sys, "stdout", out)
            streams.setattr(sys, "stderr", err)
            code, _, _ = command_line(*command)
        out.flush()
        err.flush()
        assert code == 0, told.getvalue()
        assert expected in written.getvalue()
        assert b"Traceback" not in told.getvalue()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["score", "x.fa", "--window", "nan"], "--window nan: must be a valid integer"),
        (["score", "x.fa", "-R"], "Option '-R' requires an argument"),
        (["generate", "--json=yes"], "Option '--json' does not take a value"),
    ],
)
def test_a_wrong_command_line_is_one_line(
    command_line: Callable[..., tuple[int, str, str]], arguments: list[str], told: str
) -> None:
    code, data, talk = command_line(*arguments)
    assert (code, data) == (2, "")
    assert talk.startswith(f"evo2: {told}")
    assert re.search(r"see `evo2.* --help`\n$", talk)
    assert len(talk.splitlines()) == 1


@pytest.mark.parametrize("start", ["-m evo2cli", "-c 'from evo2cli.app import main; main()'"])
def test_messages_say_evo2_however_it_was_started(start: str) -> None:
    command = f"{sys.executable} {start} eval needle --nothing"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr == "evo2: No such option: --nothing; see `evo2 eval needle --help`\n"


def test_a_reader_that_leaves_ends_it_quietly(tmp_path: Path) -> None:
    (tmp_path / "many.fa").write_text("".join(f">s{i}\nACGTACGT\n" for i in range(2000)))
    reader = f"{sys.executable} -m evo2cli score {tmp_path / 'many.fa'} | head -n 2"
    command = f"set -o pipefail; {reader}"
    result = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, check=False, timeout=120
    )
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 2
    assert "Traceback" not in result.stderr


def test_a_page_shows_brackets_and_colons_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(box=None)
    table.add_column("[b]")
    table.add_row("[/red] :smile:")
    console.write_page(table)
    assert capsys.readouterr().out.split() == ["[b]", "[/red]", ":smile:"]
