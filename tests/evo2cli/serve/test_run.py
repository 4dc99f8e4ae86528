"""The command: how it starts and ends."""

import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from evo2cli.processes import handled_stops
from tests.evo2cli.serve.conftest import is_ready
from tests.ranks import World, free_port, wait_until

CommandLine = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
@pytest.mark.parametrize("number", handled_stops())
def test_a_signal_ends_the_server_after_accepted_requests(
    number: signal.Signals, tmp_path: Path
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    served = World(1, tmp_path, "log", ["serve", "--port", str(port), "--max-bases", "160"])
    with httpx.Client(base_url=url, timeout=600) as client, ThreadPoolExecutor(2) as pool:
        try:
            wait_until(lambda: is_ready(client))
            body = {"sequence": "ACGT", "num_tokens": 150}
            accepted = pool.submit(client.post, "/biology/arc/evo2/generate", json=body)
            call = {"name": "generate_sequence", "arguments": {"prompt": "ACGT", "n_tokens": 150}}
            message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
            accept = {"Accept": "application/json, text/event-stream"}
            of_agent = pool.submit(client.post, "/mcp", json=message, headers=accept)
            wait_until(lambda: "evo2_rows_growing 2" in client.get("/metrics").text)
            served.signal(number)
            assert len(accepted.result().json()["sequence"]) == 150
            assert '"n_tokens":150' in of_agent.result().text
            served.ranks[0].join(60)
            assert not served.is_running
        finally:
            served.ranks[0].kill()
    codes, log = served.finish()
    assert codes == [0]
    assert f"nano is ready at {url}" in log
    assert "Traceback" not in log


def test_an_address_in_use_is_refused_before_the_model_is_loaded(
    command_line: CommandLine,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, said = command_line("serve", "--port", port, "--model", "missing")
    assert code == 2
    assert said.startswith(f"evo2: --host 127.0.0.1 --port {port}: Address already in use")


def test_a_model_that_cannot_be_opened_ends_the_server(command_line: CommandLine) -> None:
    code, _, said = command_line("serve", "--port", "8001", "--model", "missing")
    assert code == 2
    assert said.count("\n") == 1
    assert "missing" in said


def test_an_unreadable_key_file_ends_the_server(command_line: CommandLine, tmp_path: Path) -> None:
    code, _, said = command_line("serve", "--api-key-file", str(tmp_path / "keys"))
    assert code == 2
    assert "keys" in said


def test_without_the_extra_the_error_says_what_to_install(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    code, _, said = command_line("serve")
    assert code == 2
    assert said == "evo2: evo2 serve needs uvicorn: pip install 'evo2cli[serve]'\n"


def test_an_open_address_without_keys_causes_a_warning(command_line: CommandLine) -> None:
    _, _, said = command_line("serve", "--host", "0.0.0.0", "--port", "8001", "--model", "missing")  # noqa: S104
    assert "warning: --host 0.0.0.0: anyone who reaches it can use it; see --api-key-file" in said
