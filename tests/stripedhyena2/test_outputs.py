"""Outputs survive a kill at any point: the old or the new whole, and the next run clears up."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stripedhyena2.outputs import OutputInUseError, atomic_path, atomic_paths, locked, real_path

# Overwrites an output in child processes: child n is killed right before its n-th file operation,
# until one is not. After each, what a reader finds is printed, and after it, what the next run
# makes of it.
KILLS = """
import os, shutil, sys
from pathlib import Path
from stripedhyena2 import outputs

place = Path(sys.argv[2])
files = [place / "x.pt", place / "x.yml"]
folder = place / "x"

def write(version):
    if sys.argv[1] == "pair":
        with outputs.atomic_paths(*files) as parts:
            for part in parts:
                part.write_text(version)
        return
    with outputs.atomic_path(folder) as part:
        part.mkdir()
        for name in ("config", "weights"):
            (part / name).write_text(version)

def read():
    found = files if sys.argv[1] == "pair" else [folder / "config", folder / "weights"]
    return "+".join(f.read_text() if f.exists() else "none" for f in found)

def killed_at(number):
    count = 0
    def hook(event, _):
        nonlocal count
        if event.startswith(("os.", "ctypes.dlsym", "fcntl")) or event == "open":
            count += 1
            if count == number:
                os.kill(os.getpid(), 9)
    if child := os.fork():
        return os.waitpid(child, 0)[1] != 0
    sys.addaudithook(hook)
    write("new")
    os._exit(0)

def without_exchange(*_):
    raise AttributeError

if sys.argv[3] == "renames":
    outputs.ctypes.CDLL = lambda _: type("libc", (), {"renameat2": without_exchange})
number, dies = 0, True
while dies:
    number += 1
    shutil.rmtree(place)
    place.mkdir()
    if sys.argv[4] != "none":
        write("old")
        if sys.argv[4] == "alone":
            files[1].unlink()
    dies = killed_at(number)
    print(read(), end=" ")
    write("new")
    print(read(), *sorted(p.name for p in place.rglob("*") if not p.is_dir()))
    assert not [p for p in place.rglob("*") if p.is_symlink()]
"""


@pytest.mark.parametrize(
    ("output", "exchange", "before", "wholes"),
    [
        ("pair", "exchange", "none", {"none+none", "none+new", "new+new"}),
        ("pair", "exchange", "old", {"old+old", "new+new"}),
        ("pair", "exchange", "alone", {"old+none", "new+new"}),
        ("folder", "exchange", "none", {"none+none", "new+new"}),
        ("folder", "exchange", "old", {"old+old", "new+new"}),
        ("folder", "renames", "old", {"old+old", "new+new", "none+none"}),  # as on NFS
    ],
)
def test_a_kill_at_any_point_leaves_the_old_or_the_new(
    tmp_path: Path, output: str, exchange: str, before: str, wholes: set[str]
) -> None:
    command = [sys.executable, "-c", KILLS, output, str(tmp_path / "place"), exchange, before]
    (tmp_path / "place").mkdir()
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert not done.returncode, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) > 10
    assert {line[0] for line in lines} == wholes
    names = ["x.pt", "x.yml"] if output == "pair" else ["config", "weights"]
    for _, after, *left in lines:
        assert after == "new+new"
        assert left == names


def test_the_same_description_is_not_switched(tmp_path: Path) -> None:
    paths = tmp_path / "x.pt", tmp_path / "x.yml"
    for weights in ("first", "second"):
        with atomic_paths(*paths) as parts:
            parts[0].write_text(weights)
            parts[1].write_text("shape")
    assert [path.read_text() for path in paths] == ["second", "shape"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.pt", "x.yml"]


def test_links_of_a_pair_may_lead_apart(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for name in ("x.pt", "x.yml"):
        (tmp_path / "far" / name).write_text("old")
    (tmp_path / "x.pt").symlink_to("far/x.pt")
    paths = tmp_path / "x.pt", tmp_path / "x.yml"
    with atomic_paths(*paths) as parts:
        for part in parts:
            part.write_text("new")
    assert paths[0].is_symlink()
    assert [path.read_text() for path in paths] == ["new", "new"]
    assert (tmp_path / "far" / "x.yml").read_text() == "old"


def test_what_lies_behind_links_is_found(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("folder/three")
    assert real_path(tmp_path / "one") == tmp_path / "folder" / "three"
    (tmp_path / "round").symlink_to("round")
    assert real_path(tmp_path / "round").name == "round"


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder of a user that is not root, as which this process acts meanwhile."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # every user can reach it there
    if is_root := os.geteuid() == 0:
        nobody = 65534
        os.chown(folder, nobody, nobody)
        os.seteuid(nobody)
    yield folder
    if is_root:
        os.seteuid(0)
    shutil.rmtree(folder)


def test_a_lock_that_a_killed_process_of_another_user_left_does_not_block(
    shared_folder: Path,
) -> None:
    output, lock = shared_folder / "x", shared_folder / ".x.lock"
    lock.write_text("{}")
    lock.chmod(0o444)
    with locked(output), lock.open() as held, pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert list(shared_folder.iterdir()) == []
    lock.write_text("{}")
    lock.chmod(0o444)
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputInUseError, match="is being written by another"), locked(output):
            pass
    shared_folder.chmod(0o555)
    with pytest.raises(PermissionError), locked(shared_folder / "y"):
        pass


def test_two_names_of_one_file_have_one_lock(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("file")
    code = (
        "import sys; from pathlib import Path; from stripedhyena2.outputs import locked\n"
        "with locked(Path(sys.argv[1])): print(flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "file")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": ":".join(sys.path)},
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        message = rf"link: is being written by another command \(process {process.pid} on"
        with pytest.raises(OutputInUseError, match=message), locked(tmp_path / "link"):
            pass
        with pytest.raises(OutputInUseError), atomic_path(tmp_path / "link"):
            pass
    with locked(tmp_path / "link"):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".file.lock", "link"]
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_temporary_folders_of_killed_processes_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; from stripedhyena2.outputs import temporary_folder\n"
        "with temporary_folder() as folder:\n"
        "    (folder / 'x').write_text('x'); print(folder, flush=True); sys.stdin.read()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": ":".join(sys.path), "TMPDIR": str(tmp_path)},
        )
        for _ in range(2)
    ]
    folders = [Path(p.stdout.readline().strip()) for p in processes]
    processes[0].kill()
    processes[0].wait()
    assert all(folder.is_dir() for folder in folders)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"PYTHONPATH": ":".join(sys.path), "TMPDIR": str(tmp_path)},
        check=True,
    )
    assert [folder.is_dir() for folder in folders] == [False, True]
    processes[1].communicate()
    assert list(tmp_path.iterdir()) == []
    for process in processes:
        process.stdin.close()
        process.stdout.close()
