"""`evo2 serve`: starts the engine and the web server, and shuts them down gracefully."""

import asyncio
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evo2cli import console
from evo2cli.errors import UserError
from evo2cli.options import refuse
from evo2cli.processes import handled_stops
from evo2cli.serve.options import AddressOptions, ServeOptions

# Seconds for which the thread of the event loop may make that of the engine wait for the GIL. The
# default of 5 ms is half a decoding step of a GPU.
SWITCH_INTERVAL = 0.0005


def serve(options: ServeOptions) -> None:
    """Answer requests until Ctrl-C, SIGTERM or SIGHUP.

    Raises:
        UserError: The extra is not installed, the address is in use, or the model cannot be opened.
        InputError: The model cannot be loaded with these options.
    """
    try:
        import fastapi_offline  # noqa: F401
        import mcp  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(f"evo2 serve needs {error.name}: pip install 'evo2cli[serve]'") from None
    if options.mcp:
        _serve_stdio(options)
        return
    from evo2cli.serve.app import make_app
    from evo2cli.serve.engine import EXTRA_GRACE, Engine
    from evo2cli.serve.guard import is_loopback

    class Server(uvicorn.Server):
        """A server that finishes accepted requests before it ends."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """At a signal to stop, accept no more requests, and finish those in progress."""

            def end() -> None:
                engine.close(options.grace)
                self.should_exit = True

            loop = asyncio.get_running_loop()
            signals = handled_stops()
            for number in signals:
                loop.add_signal_handler(number, end)
            try:
                yield
            finally:
                for number in signals:
                    loop.remove_signal_handler(number)

    def stop() -> None:
        server.should_exit = True

    sys.setswitchinterval(SWITCH_INTERVAL)
    engine = Engine(options, stop, lambda: console.say(f"{name} is ready at {address}"))
    name = Path(options.model).name
    app = make_app(options, engine, name)
    host = f"[{options.host}]" if ":" in options.host else options.host
    address = f"http://{host}:{options.port}"
    if not is_loopback(options.host) and options.api_key_file is None:
        console.warn(f"--host {options.host}: anyone who reaches it can use it; see --api-key-file")
    config = uvicorn.Config(
        app,
        host=options.host,
        port=options.port,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        # By then, the engine has refused the jobs that are not finished.
        timeout_graceful_shutdown=round(options.grace) + EXTRA_GRACE,
    )
    server = Server(config)
    with _listen(options) as listening:
        engine.start()
        server.run(sockets=[listening])
    engine.close(0)
    engine.join(EXTRA_GRACE)
    if engine.failure is not None:
        raise engine.failure


def _serve_stdio(options: ServeOptions) -> None:
    """Serve one agent over stdin and stdout."""
    from evo2cli.serve.engine import EXTRA_GRACE, Engine
    from evo2cli.serve.mcp import Tools
    from evo2cli.serve.stdio import over_stdio

    refuse(options, "--mcp answers over stdin and stdout, not at an address", AddressOptions)
    if sys.stdin is None:
        raise UserError("--mcp: stdin is closed; let the agent start this command")
    has_failed = threading.Event()
    name = Path(options.model).name
    engine = Engine(options, has_failed.set, lambda: console.say(f"{name} is ready"))
    tools = Tools(engine, name, options.mcp_root)
    engine.start()
    try:
        asyncio.run(over_stdio(tools, engine, options.grace, has_failed))
    finally:
        engine.close(0)
        engine.join(EXTRA_GRACE)
    if engine.failure is not None:
        raise engine.failure


def _listen(options: ServeOptions) -> socket.socket:
    """Open a socket that listens on the address.

    Raises:
        UserError: It is not an address of this machine, or is in use.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise UserError(
            f"--host {options.host} --port {options.port}: {error.strerror or error}; "
            "choose another port or address"
        ) from None
