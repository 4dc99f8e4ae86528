"""How processes end: quietly by Ctrl-C or SIGTERM, whenever it comes, and with their parents."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evo2cli.processes import LAUNCHER, handled_stops, start_child

EXAMPLES = Path(__file__).parents[2] / "examples"

# Runs `evo2` with the first line, which may send a signal, before it.
EVO2 = """
import os, signal, sys
sent = signal.{sent}
ignored = {ignored}
if ignored:
    signal.signal(sent, signal.SIG_IGN)
elif sent == signal.SIGINT:
    signal.signal(sent, signal.default_int_handler)
sys.argv = ["evo2", *{words}]
{first}
from evo2cli.__main__ import main
main()
"""
ON_IMPORT = """
from pathlib import Path
class Interrupt:
    def find_spec(name, path=None, target=None):
        if {condition}:
            try:
                os.kill(os.getpid(), sent)
            except KeyboardInterrupt:  # C++ that is being loaded swallows it, or aborts
                os.abort()
sys.meta_path.insert(0, Interrupt)
"""
IN_WORK = """
import evo2cli.app
def work():
    try:
        os.kill(os.getpid(), sent)
    except KeyboardInterrupt:
        raise ValueError("as C++ reports it") from None
evo2cli.app.main = work
"""


def on_import_of(module: str) -> str:
    return ON_IMPORT.format(condition=f"name == {module!r}")


def run(
    first: str, *words: str, sent: signal.Signals = signal.SIGINT, ignored: bool = False
) -> subprocess.CompletedProcess[str]:
    code = EVO2.format(first=first, sent=sent.name, ignored=ignored, words=words)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


TOLD = {
    signal.SIGINT: "evo2: interrupted\n",
    signal.SIGTERM: "evo2: ended by SIGTERM\n",
    signal.SIGHUP: "evo2: ended by SIGHUP\n",
}


@pytest.mark.parametrize(
    ("first", "sent"),
    [
        (on_import_of("typer"), signal.SIGINT),
        (on_import_of("torch"), signal.SIGTERM),
        (on_import_of("stripedhyena2.scoring"), signal.SIGINT),
        *((IN_WORK, sent) for sent in handled_stops()),
    ],
    ids=[
        "typer",
        "torch",
        "stripedhyena2.scoring",
        *(f"work-{sent.name}" for sent in handled_stops()),
    ],
)
def test_a_signal_ends_it_quietly_whenever_it_comes(first: str, sent: signal.Signals) -> None:
    result = run(first, "score", str(EXAMPLES / "phix174.fa"), sent=sent)
    assert (result.returncode, result.stdout) == (128 + sent, "")
    assert result.stderr == TOLD[sent]


@pytest.mark.parametrize(
    ("command", "file", "output", "sent"),
    [
        ("score", "phix174.vcf", "x.vcf", signal.SIGINT),
        ("score", "phix174.vcf", "x.vcf", signal.SIGTERM),
        ("tokenize", "phix174.fa", "x", signal.SIGINT),
    ],
)
def test_a_signal_during_an_import_leaves_no_part_of_an_output(
    command: str, file: str, output: str, sent: signal.Signals, tmp_path: Path
) -> None:
    first = ON_IMPORT.format(condition=f"[*Path({str(tmp_path)!r}).glob('.*')]")
    result = run(first, command, str(EXAMPLES / file), "-O", str(tmp_path / output), sent=sent)
    assert result.returncode == 128 + sent
    assert result.stderr.endswith(TOLD[sent])
    assert [path for path in tmp_path.iterdir() if path.suffix != ".journal"] == []


AGAIN_IN_CLEANUP = """
import evo2cli.app
def work():
    try:
        os.kill(os.getpid(), sent)
    finally:
        os.kill(os.getpid(), sent)
        print("cleaned up")
evo2cli.app.main = work
"""


@pytest.mark.parametrize("sent", handled_stops())
def test_a_signal_that_is_sent_twice_ends_it_after_its_cleanup(sent: signal.Signals) -> None:
    result = run(AGAIN_IN_CLEANUP, "score", sent=sent)
    assert (result.returncode, result.stderr) == (128 + sent, TOLD[sent])
    assert result.stdout == ("" if sent == signal.SIGINT else "cleaned up\n")  # an impatient user


IN_JOURNAL = """
from evo2cli import journal
recall = journal._Journal.recall
def recall_then_send(self, *arguments):
    found = recall(self, *arguments)
    if self._path.read_bytes().count(b"\\n") == 6:
        os.kill(os.getpid(), sent)
    return found
journal._Journal.recall = recall_then_send
"""


def test_sigterm_leaves_the_journal_alone_and_the_same_command_resumes(tmp_path: Path) -> None:
    words = ["score", str(EXAMPLES / "phix174.vcf"), "--device", "cpu", "--window", "32", "-O"]
    outputs = [tmp_path / "whole.vcf", tmp_path / "x.vcf"]
    run("", *words, str(outputs[0]))
    ended = run(IN_JOURNAL, *words, str(outputs[1]), sent=signal.SIGTERM)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "")
    assert ended.stderr.endswith(TOLD[signal.SIGTERM])
    assert {file.name for file in tmp_path.iterdir()} == {"whole.vcf", "x.vcf.journal"}
    again = run("", *words, str(outputs[1]))
    assert "resumed after 5 results" in again.stderr
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert {*tmp_path.iterdir()} == {*outputs}


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_ignored(sent: signal.Signals) -> None:
    result = run(on_import_of("typer"), "--version", sent=sent, ignored=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_rank_leaves_it_to_its_launcher_to_tell_how_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(LAUNCHER, "")
    result = run(IN_WORK, "score", sent=signal.SIGTERM)
    assert (result.returncode, result.stderr) == (128 + signal.SIGTERM, "")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends processes with their parent")
def test_a_process_ends_with_its_parent_even_by_sigkill() -> None:
    child = "from evo2cli.processes import end_with_parent as end; end(); print('up', flush=True)"
    child += "; import time; time.sleep(600)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.kill()
    assert process.communicate(timeout=60)[0] == ""  # waits until the child has closed it, too
    orphan = "from evo2cli.processes import end_with_parent; end_with_parent('1')"
    late = subprocess.run([sys.executable, "-c", orphan], check=False)
    assert late.returncode == -signal.SIGKILL


def test_ctrl_c_reaches_the_parent_alone() -> None:
    """A terminal sends it to both; the mask of this process is as before."""
    context = multiprocessing.get_context("spawn")
    child = context.Process(target=signal.raise_signal, args=(signal.SIGINT,))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    start_child(child)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    child.join()
    assert child.exitcode == 0
