"""The tools of `mcp` for one agent, over stdin and stdout."""

import asyncio
import math
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import anyio
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.message import SessionMessage

from evo2cli.processes import handled_stops
from evo2cli.serve.engine import EXTRA_GRACE, Engine
from evo2cli.serve.mcp import Tools

STDIN = 0  # its file descriptor


async def over_stdio(
    tools: Tools, engine: Engine, grace: float, has_failed: threading.Event
) -> None:
    """Serve over stdin and stdout until stdin ends, the engine fails, or Ctrl-C, SIGTERM or SIGHUP.

    Args:
        tools: The tools.
        engine: Runs the model; after a signal it accepts no more requests.
        grace: Seconds after a signal to finish calls in progress.
        has_failed: Set when the engine fails.
    """
    # A thread that reads stdin cannot be interrupted. So it forwards stdin through a pair of
    # sockets: when this end is closed, the server sees the end of its input.
    ours, theirs = socket.socketpair()
    threading.Thread(target=_forward_stdin, args=[ours], name="stdin", daemon=True).start()

    async def end() -> None:
        engine.close(grace)
        latest = time.monotonic() + grace + EXTRA_GRACE
        while tools.num_running and time.monotonic() < latest:
            await asyncio.sleep(0.02)
        ours.shutdown(socket.SHUT_WR)

    async def watch() -> None:
        while not has_failed.is_set():
            await asyncio.sleep(0.05)
        await end()

    loop = asyncio.get_running_loop()
    tasks = [asyncio.create_task(watch())]
    signals = handled_stops()
    for number in signals:
        loop.add_signal_handler(number, lambda: tasks.append(asyncio.create_task(end())))
    try:
        with ours, theirs, theirs.makefile(encoding="utf-8", errors="replace") as lines:
            await _serve_lines(tools.server(), anyio.wrap_file(lines))
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
        for task in tasks:
            task.cancel()


def _forward_stdin(to: socket.socket) -> None:
    with suppress(OSError):  # the server has ended
        # Not with sys.stdin, whose lock would be held when the process exits.
        while data := os.read(STDIN, 1 << 16):
            to.sendall(data)
        to.shutdown(socket.SHUT_WR)


async def _serve_lines(server: "Server[Any]", lines: "anyio.AsyncFile[str]") -> None:
    """Answer messages until the lines end, and write all answers."""
    # At the end the SDK cancels answers that wait to be written. With a buffer, none waits.
    answers, written = anyio.create_memory_object_stream[SessionMessage](math.inf)
    try:
        async with stdio_server(lines) as (read, write), anyio.create_task_group() as group:

            async def forward() -> None:
                async with write, written:
                    async for message in written:
                        await write.send(message)

            group.start_soon(forward)
            await server.run(read, answers, server.create_initialization_options())
    except* BrokenPipeError:
        pass  # stdout is closed
