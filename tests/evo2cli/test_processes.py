"""How processes end: quietly by Ctrl-C, whenever it comes, and with their parents."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evo2cli.processes import INTERRUPTED, start_child

EXAMPLES = Path(__file__).parents[2] / "examples"

# Runs `evo2` with the first line, which may raise SIGINT, before it.
EVO2 = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.{handler})
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
                os.kill(os.getpid(), signal.SIGINT)
            except KeyboardInterrupt:  # C++ that is being loaded swallows it, or aborts
                os.abort()
sys.meta_path.insert(0, Interrupt)
"""
IN_WORK = """
import evo2cli.app
def work():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ValueError("as C++ reports it") from None
evo2cli.app.main = work
"""


def on_import_of(module: str) -> str:
    return ON_IMPORT.format(condition=f"name == {module!r}")


def run(
    first: str, *words: str, handler: str = "default_int_handler"
) -> subprocess.CompletedProcess[str]:
    code = EVO2.format(first=first, handler=handler, words=words)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "first",
    [
        *(on_import_of(name) for name in ("typer", "torch", "stripedhyena2.scoring")),
        IN_WORK,
    ],
    ids=["typer", "torch", "stripedhyena2.scoring", "work"],
)
def test_an_interrupt_ends_it_quietly_whenever_it_comes(first: str) -> None:
    result = run(first, "score", str(EXAMPLES / "phix174.fa"))
    assert (result.returncode, result.stdout) == (INTERRUPTED, "")
    assert result.stderr == "evo2: interrupted\n"


@pytest.mark.parametrize(
    ("command", "file", "output"),
    [("score", "phix174.vcf", "x.vcf"), ("tokenize", "phix174.fa", "x")],
)
def test_an_interrupt_during_an_import_leaves_no_part_of_an_output(
    command: str, file: str, output: str, tmp_path: Path
) -> None:
    first = ON_IMPORT.format(condition=f"[*Path({str(tmp_path)!r}).glob('.*')]")
    result = run(first, command, str(EXAMPLES / file), "-O", str(tmp_path / output))
    assert result.returncode == INTERRUPTED
    assert result.stderr.endswith("evo2: interrupted\n")
    assert [path for path in tmp_path.iterdir() if path.suffix != ".journal"] == []


def test_an_interrupt_that_is_ignored_stays_ignored() -> None:
    result = run(on_import_of("typer"), "--version", handler="SIG_IGN")
    assert (result.returncode, result.stderr) == (0, "")


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
