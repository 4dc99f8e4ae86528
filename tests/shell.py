"""`evo2` for shells, forked from a process that has imported it: a start takes no time."""

import gc
import json
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.ranks import SERVER

# Hands arguments, folder, variables and streams over, and ends with the code of the command.
CLIENT = """#!{python} -IS
import json, os, socket, struct, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [struct.pack("=Q", len(call))], [0, 1, 2])
server.sendall(call)
code = server.recv(1)
sys.exit(code[0] if code else "evo2 ended without an exit code")
"""


@contextmanager
def forked_evo2(path: Path) -> Iterator[None]:
    """As long as it lasts, a file is an executable that does what `evo2` does."""
    address = path.with_name("socket")
    path.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    path.chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        thread = threading.Thread(target=_accept, args=(listener,), daemon=True)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            caller, _ = listener.accept()
        except OSError:  # there will be no more
            return
        with caller:
            SERVER.Process(target=_answer, args=(caller,)).start()


def _answer(caller: socket.socket) -> None:
    from evo2cli.app import main

    gc.freeze()  # as in tests/ranks.py
    size, streams, _, _ = socket.recv_fds(caller, 8, 3)
    [length] = struct.unpack("=Q", size)
    arguments, folder, variables = json.loads(caller.makefile("rb").read(length))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    # The streams of the process that was forked know the kind of file that they were opened on.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for as long as the process runs
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["evo2", *arguments]
    ended = threading.Event()
    threading.Thread(target=_end_with, args=(caller, ended), daemon=True).start()
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        ended.set()
        caller.sendall(bytes([int(end.code or 0)]))


def _end_with(caller: socket.socket, ended: threading.Event) -> None:
    """End when the caller does, which a shell may kill."""
    caller.recv(1)
    if not ended.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
