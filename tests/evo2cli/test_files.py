"""Outputs of every command: by one process at a time, whole or not at all, onto links and pipes.

Devices are made in the folder of a test: a fault would replace the machine's own /dev/null.
"""

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from evo2cli.genome.fasta import read_records
from stripedhyena2.outputs import locked

EXAMPLES = Path(__file__).parents[2] / "examples"
SCORE = "score {inputs}/v.vcf -R {inputs}/g.fa --window 64"
EMBED = "embed {inputs}/many.fa --layers norm"
NEEDLE = "eval needle --lengths 128 --needle-length 32 --repeats 1"
# Output, and the command that writes it.
FILES = {
    "x.vcf": SCORE,
    "x.vcf.gz": SCORE,
    "x.bcf": SCORE,
    "x.parquet": SCORE,
    "x.jsonl": "score {inputs}/many.fa",
    "s.tsv": "saturate c:101-103 -R {inputs}/g.fa --window 64",
    "x.bedgraph.gz": "track {inputs}/g.fa",
    "x.bw": "track {inputs}/g.fa",
    "e.npz": EMBED,
    "e.safetensors": EMBED,
    "e.parquet": EMBED,
    "x.fa": "generate --prompt ACGT -n 20 --num-samples 8",
    "x.json": NEEDLE,
    "m.vcf": "merge {inputs}/part.vcf",
    "x.pt": "convert {model}",
    "m.safetensors": "convert {model}",
    "x.png": NEEDLE,
}
FOLDERS = {
    "tokens": "tokenize {inputs}/many.fa --valid-fraction 0",
    "checkpoint": "convert {model}",
    "longer": "extend {model} --to 512",
}
WITHOUT_MODEL = ("tokenize", "merge", "convert", "extend")

Run = Callable[[Path], tuple[int, str]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    [record] = read_records(EXAMPLES / "phix174.fa")
    bases = record.sequence[:300].decode()
    (folder / "g.fa").write_text(f">c\n{bases}\n")
    (folder / "many.fa").write_text("".join(f">r{i}\n{bases[i : i + 99]}\n" for i in range(12)))
    header = "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    line = "c\t{0}\t.\t{1}\t{2}\t.\t.\t.\n"
    records = [line.format(p, bases[p - 1], "C" if bases[p - 1] == "A" else "A") for p in (99, 150)]
    (folder / "v.vcf").write_text(header + "".join(records))
    (folder / "part.vcf").write_text(header + "".join(records) * 20)
    return folder


@pytest.fixture
def evo2(
    command_line: Callable[..., tuple[int, str, str]], inputs: Path, checkpoint: str
) -> Callable[[str, Path], tuple[int, str]]:
    """Runs the command that writes an output: its code, and the last line of stderr."""

    def run(command: str, output: Path) -> tuple[int, str]:
        words = command.format(inputs=inputs, model=checkpoint).split()
        if words[0] not in WITHOUT_MODEL:
            words += ["--model", checkpoint, "--device", "cpu"]
        if words[0] == "convert":
            words.append(str(output))
        else:
            words += ["--plot" if output.suffix == ".png" else "-O", str(output)]
        code, _, stderr = command_line(*words)
        assert "Traceback" not in stderr
        return code, stderr.splitlines()[-1]

    return run


@pytest.fixture(scope="module")
def holder() -> Iterator[Callable[[Path], int]]:
    """Starts a process that holds the lock of an output; returns its number."""
    code = (
        "import sys; from pathlib import Path; from stripedhyena2.outputs import locked\n"
        "for line in sys.stdin:\n"
        "    with locked(Path(line.strip())):\n"
        "        print(flush=True); sys.stdin.readline()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        @contextmanager
        def hold(output: Path) -> Iterator[int]:
            process.stdin.write(f"{output}\n")
            process.stdin.flush()
            process.stdout.readline()
            try:
                yield process.pid
            finally:
                process.stdin.write("\n")
                process.stdin.flush()

        yield hold
        process.kill()


@pytest.mark.parametrize(("name", "command"), [*FILES.items(), *FOLDERS.items()])
def test_an_output_in_use_is_refused(evo2, holder, tmp_path: Path, name: str, command: str) -> None:
    with holder(tmp_path / name) as process:
        code, line = evo2(command, tmp_path / name)
        assert code == 2
        assert f"{name}: is being written by another command (process {process} on" in line
        assert [path.name for path in tmp_path.iterdir()] == [f".{name}.lock"]


@pytest.mark.parametrize(("name", "command"), FILES.items())
def test_a_name_that_is_not_utf8_is_written_or_refused_before_the_work(
    evo2, tmp_path: Path, name: str, command: str
) -> None:
    sys.stderr.reconfigure(errors="backslashreplace")  # as that of a process
    output = tmp_path / f"\udcff{name}"
    code, line = evo2(command, output)
    if output.suffix in (".parquet", ".bw"):
        assert code == 2
        assert line.endswith("needs a path in UTF-8; rename file or folder")
        assert not list(tmp_path.glob("[!.]*"))
    else:
        assert code == 0
        assert output.is_file()


@pytest.mark.parametrize(("name", "command"), FILES.items())
def test_links_are_followed_and_pipes_are_written_to(
    evo2, tmp_path: Path, name: str, command: str
) -> None:
    for folder in ("file", "far", "link", "pipe"):
        (tmp_path / folder).mkdir()
    file, target = tmp_path / "file" / name, tmp_path / "far" / name
    assert evo2(command, file)[0] == 0
    target.write_bytes(b"old")
    link, pipe = tmp_path / "link" / name, tmp_path / "pipe" / name
    link.symlink_to(target)
    assert evo2(command, link)[0] == 0
    assert link.is_symlink()
    assert target.read_bytes() == file.read_bytes()
    beside = [path.name for path in file.parent.iterdir() if path != file]  # an index, a yml
    assert {path.name for path in link.parent.iterdir()} == {name, *beside}
    assert list(target.parent.iterdir()) == [target]

    os.mkfifo(pipe)
    if name == "x.bw":
        code, line = evo2(command, pipe)
        assert code == 2
        assert "is a pipe, and bigWig is not written from start to end" in line
        return
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    assert evo2(command, pipe)[0] == 0
    reader.join()
    assert pipe.is_fifo()
    assert received == [file.read_bytes()]


@pytest.mark.parametrize(("name", "command"), FILES.items())
def test_a_device_is_never_replaced(evo2, tmp_path: Path, name: str, command: str) -> None:
    device = tmp_path / "device"
    try:
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root may make a device")
    (tmp_path / name).symlink_to(device)
    assert evo2(command, tmp_path / name)[0] == 0
    assert device.is_char_device()
    assert {path.name for path in tmp_path.iterdir()} <= {"device", name, "x.yml", "m.yml"}


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes, as under `ulimit -f`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("name", "command"), [*FILES.items(), *FOLDERS.items()])
def test_what_does_not_fit_is_one_line_and_leaves_nothing(
    evo2, tmp_path: Path, name: str, command: str
) -> None:
    with small_files(600):
        code, line = evo2(command, tmp_path / name)
    assert code == 2, line
    assert line.startswith(f"evo2: {tmp_path / name}")
    assert {path.name for path in tmp_path.iterdir()} <= {f"{name}.journal", f"{name}.vectors"}


def test_a_lock_ends_with_its_process_and_names_the_same_command(
    evo2, checkpoint: str, tmp_path: Path
) -> None:
    output = tmp_path / "x.fa"
    code = (
        "import sys; from pathlib import Path; from stripedhyena2.outputs import locked\n"
        "sys.argv = sys.argv[2:]\n"
        f"with locked(Path({str(output)!r})): print(flush=True); sys.stdin.read()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = f"evo2 generate --prompt ACGT -n 5 --model {checkpoint} --device cpu -O {output}"
    with subprocess.Popen(
        [sys.executable, "-c", code, "-", *words.split()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        code, line = evo2("generate --prompt ACGT -n 5", output)
        assert code == 2
        assert f"x.fa: the same command is already running (process {process.pid} on" in line
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / ".x.fa.lock").exists()
    assert evo2("generate --prompt ACGT -n 5", output)[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.fa"]
    with locked(output), locked(output):  # this process holds it already
        assert evo2("generate --prompt ACGT -n 5", output)[0] == 0
