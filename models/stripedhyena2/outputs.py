"""Output files: written atomically, and by one process at a time.

An output is written under a hidden name (`.x.vcf.part`) and then renamed. Meanwhile a file beside
it (`.x.vcf.lock`) is locked by `flock`. The system releases the lock when the process ends, however
it ends, and the next process cleans up what a killed one has left. This works between the processes
of one machine, and between machines if the file system supports it (NFS does); for a file system
without locks there is a warning. Links are followed. Devices and pipes are written to and never
replaced.

Errors of the system are OSErrors. Nothing here imports torch.
"""

import ctypes
import errno
import fcntl
import filecmp
import json
import logging
import os
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from functools import cache
from pathlib import Path

from stripedhyena2.errors import InputError

_LOG = logging.getLogger(__name__)
_HELD: set[Path] = set()  # outputs that this process has locked
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
_OPEN_FILES = (Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd"))
_MAX_LINKS = 40  # as many as Linux follows


class OutputInUseError(InputError):
    """Another process is writing the output; the message says which one, and since when."""


def is_stream(path: Path) -> bool:
    """Whether a path is a device, a pipe or an open file (/dev/stdout); links are followed."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or path.absolute().parent in _OPEN_FILES


def is_utf8(path: Path) -> bool:
    """Whether a path is valid UTF-8, as safetensors, pyarrow and pyBigWig require."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def real_path(path: Path) -> Path:
    """The path of an output with links resolved, except those of a `_switch` that was killed."""
    for _ in range(_MAX_LINKS):
        if not path.is_symlink() or path.readlink().parent.suffix == ".view":
            break
        path = path.parent / path.readlink()
    return Path(os.path.realpath(path.parent)) / path.name


def _hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{suffix}")


@contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of an output; it is reentrant within the process.

    Args:
        path: The output. Streams have no lock.
        wait: Wait for another process instead of raising an error.

    Raises:
        OutputInUseError: Another process holds the lock.
        OSError: The lock file cannot be created beside the output.
    """
    real = real_path(path)
    if real in _HELD or is_stream(path):
        yield
        return
    file = _hidden(real, "lock")
    descriptor = _acquire(file, path, wait)
    _HELD.add(real)
    try:
        yield
    finally:
        _HELD.remove(real)
        with suppress(OSError):
            file.unlink()  # while it is locked: a process that waits for it sees that it is gone
        os.close(descriptor)


def _acquire(file: Path, output: Path, wait: bool) -> int:
    """Create a lock file, lock it and write the owner into it; returns its descriptor."""
    while True:
        descriptor, writable = _open_lock(file)
        try:
            if lock(descriptor, wait=wait) is False:
                raise OutputInUseError(f"{output}: {_describe(os.read(descriptor, 1 << 20))}")
            if _is_at(file, descriptor):
                if writable:
                    _write_owner(file, descriptor)
                    return descriptor
                file.unlink()  # its owner was killed
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # this file is gone: try again


def _open_lock(file: Path) -> tuple[int, bool]:
    """Open a lock file; returns its descriptor, and whether this user may write to it."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT, 0o666), True
    except PermissionError:  # of another user, in a folder that several share; or of the folder
        with suppress(FileNotFoundError):
            return os.open(file, os.O_RDONLY), False
        raise


def _write_owner(file: Path, descriptor: int) -> None:
    try:
        os.ftruncate(descriptor, 0)  # the entry of a killed process
        os.write(descriptor, json.dumps(_this_process()).encode())
    except OSError:
        file.unlink()
        raise


def _is_at(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def lock(descriptor: int, *, wait: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed.

    Returns:
        True if it is locked now; False if another process has locked it; None, after a warning, if
        the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_of_no_locks()
        return None
    return True


@cache
def _warn_of_no_locks() -> None:
    _LOG.warning("this file system has no locks; do not write one output by two commands at once")


def _this_process() -> dict[str, object]:
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().isoformat(" ", "seconds"),
        "command": [str(Path.cwd()), *sys.argv],
    }


def _describe(holder: bytes) -> str:
    """A message about the process that holds a lock."""
    try:
        info = json.loads(holder)
        who = f"process {info['process']} on {info['host']}, since {info['since']}"
    except (ValueError, KeyError, TypeError):  # not written yet
        return "is being written by another process; wait for it, or name another output"
    if info.get("command") == _this_process()["command"]:
        return f"the same command is already running ({who}); wait for it"
    return f"is being written by another command ({who}); wait for it, or name another output"


@contextmanager
def atomic_path(path: Path, *, wait: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which replaces `path` if the block succeeds.

    If the block raises, the temporary file is removed and `path` is unchanged. A stream gets the
    bytes of the file when it is complete.

    Args:
        path: The output.
        wait: As for `locked`.

    Raises:
        OutputInUseError: Another process is writing it.
        OSError: It cannot be written.
    """
    if is_stream(path):
        with temporary_folder() as folder:
            part = folder / path.name
            yield part
            with part.open("rb") as source, path.open("wb") as stream:
                shutil.copyfileobj(source, stream)
        return
    real = real_path(path)
    part = _hidden(real, "part")
    with locked(path, wait=wait):
        _finish_exchange(real)
        remove(part)
        try:
            yield part
            replace(part, real)
        finally:
            with suppress(OSError):
                remove(part)


@contextmanager
def atomic_paths(first: Path, second: Path) -> Iterator[tuple[Path, Path]]:
    """As `atomic_path`, for two files that belong together: a single rename replaces both.

    Links into different folders are an exception: there, the second file is replaced before the
    first.

    Args:
        first: The main file, without which the second is not read.
        second: The file beside it.
    """
    real = real_path(first), real_path(second)
    staging = _hidden(real[0], "new")
    with ExitStack() as stack:
        if is_stream(first):
            staging = stack.enter_context(temporary_folder())
        else:
            stack.enter_context(locked(first))
            _settle(real)
            remove(staging)
            staging.mkdir()
            stack.callback(shutil.rmtree, staging, ignore_errors=True)
        parts = staging / real[0].name, staging / real[1].name
        yield parts
        is_pair = real[0].is_file() and real[0].parent == real[1].parent
        if is_pair and not (real[1].is_file() and filecmp.cmp(parts[1], real[1], shallow=False)):
            _switch(staging, real)
        else:
            for part, path in ((parts[1], second), (parts[0], first)):
                with atomic_path(path) as moved:
                    shutil.move(part, moved)


def _switch(staging: Path, paths: Sequence[Path]) -> None:
    """Replace files by those of the same names in the folder `staging`, by a single rename.

    For a moment they are links through another link, `.x.pt.view`: first to the old files, and from
    that rename on to the new ones. `_settle` turns them into files again.
    """
    old, view = _hidden(paths[0], "old"), _hidden(paths[0], "view")
    old.mkdir()
    for path in filter(Path.exists, paths):
        os.link(path, old / path.name)
    _point(view, old.name)
    for path in paths:
        _point(path, f"{view.name}/{path.name}")
    _point(view, staging.name)
    _settle(paths)


def _point(link: Path, target: str) -> None:
    """Create or replace a symbolic link atomically."""
    new = _hidden(link, "link")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)


def _settle(paths: Sequence[Path]) -> None:
    """Complete a `_switch`, also one that was killed: turn its links into files."""
    for path in filter(Path.is_symlink, paths):
        if path.exists():
            new = _hidden(path, "link")
            new.unlink(missing_ok=True)
            os.link(path.resolve(), new)
            new.replace(path)
        else:  # there was no such file before
            path.unlink()
    for suffix in ("view", "old"):
        remove(_hidden(paths[0], suffix))


def replace(new: Path, path: Path) -> None:
    """Rename `new` to `path`, replacing a file or a whole folder."""
    if new.is_dir() and path.is_dir():
        _exchange(new, path)
        remove(new)  # now the old folder
    else:
        new.replace(path)


def _exchange(new: Path, path: Path) -> None:
    """Exchange two folders atomically or, if the system cannot (NFS), by separate renames."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    names = os.fsencode(new.absolute()), os.fsencode(path.absolute())
    try:
        failed = ctypes.CDLL(None).renameat2(here, names[0], here, names[1], exchange)
    except AttributeError:  # not Linux
        failed = True
    if failed:
        old = _hidden(path, "old")
        path.rename(old)
        new.rename(path)
        old.rename(new)


def _finish_exchange(path: Path) -> None:
    """Complete an exchange that was killed between two renames."""
    old = _hidden(path, "old")
    if path.exists():
        remove(old)
    elif old.is_dir():
        old.rename(path)


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A temporary folder, removed at the end; also removes those that killed processes left."""
    base = Path(tempfile.gettempdir(), f"evo2-{os.getuid()}")
    with ExitStack() as stack:
        with locked(base, wait=True):
            for other in base.parent.glob(f"{base.name}-*"):
                with suppress(OSError), _opened(other) as descriptor:
                    if lock(descriptor):
                        shutil.rmtree(other)
            folder = Path(tempfile.mkdtemp(prefix=f"{base.name}-"))
            lock(stack.enter_context(_opened(folder)))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def _opened(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
