"""Tools for agents, called by the SDK's client over both transports."""

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mcp import Client, types
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from evo2cli.errors import UserError
from evo2cli.genome.vcf import VariantRecord
from evo2cli.processes import handled_stops
from evo2cli.score import score_sequences, score_variants
from evo2cli.serve import engine as engines
from evo2cli.serve import mcp as tools
from evo2cli.serve.engine import Engine
from evo2cli.serve.mcp import Tools
from evo2cli.serve.options import ServeOptions
from stripedhyena2.layers import default_layer, part_names
from tests.evo2cli.serve.conftest import Serving, names_no_other_option, serving
from tests.evo2cli.serve.test_guard import TEXTS, VALUES
from tests.ranks import wait_until

CommandLine = Callable[..., tuple[int, str, str]]
PROMPT = "ACGTTGCAGGCTTAACGGATA"
ROOT = Path(__file__).parents[3]
HEADERS = {"Accept": "application/json, text/event-stream"}
NAMES = [
    *("score_sequence", "score_snp", "embed_sequence", "generate_sequence"),
    *("get_embedding_layers", "list_available_checkpoints"),
]
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("score_sequence", {"sequence": PROMPT}),
    ("score_sequence", {"sequence": "acgu", "reduce_method": "sum", "strand": "both"}),
    ("score_sequence", {"fasta": "some.fa"}),
    ("score_snp", {"sequence": PROMPT, "alternative_allele": "a"}),
    ("score_snp", {"variant": "chr1-40-G-C", "window": 64}),
    ("score_snp", {"vcf": "deep/some.vcf", "window": 64}),
    ("embed_sequence", {"sequence": PROMPT, "layer_name": "blocks.2.mlp.l3"}),
    ("embed_sequence", {"sequence": PROMPT, "pool": "mean"}),
    ("generate_sequence", {"prompt": PROMPT, "n_tokens": 20, "seed": 5}),
    ("get_embedding_layers", {"which": "all"}),
    ("list_available_checkpoints", {}),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files that tools may read, beside files that they may not."""
    beside = tmp_path_factory.mktemp("files")
    (beside / "secret.fa").write_text(">secret\nACGT\n")
    (beside / "root-secret").mkdir()
    (beside / "root-secret" / "x.fa").write_text(">secret\nACGT\n")
    folder = beside / "root"
    (folder / "deep").mkdir(parents=True)
    (folder / "some.fa").write_text(f">one\n{PROMPT}\n>two words\nacgtn\n>three\nG\n")
    (folder / "deep" / "some.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t90\trs1\tA\tT,C\t.\t.\t.\nchr1\t5\t.\tT\tTAA\t.\t.\t.\n"
    )
    (folder / "bad.fa").write_text("ACGT\n")
    (folder / "bad.vcf").write_text("chr1\t90\n")
    (folder / "inside.fa").symlink_to("some.fa")
    (folder / "outside.fa").symlink_to(beside / "secret.fa")
    (folder / "out").symlink_to(beside)
    (folder / "circle").symlink_to("circle")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture(scope="module")
def server(genome: Path, root: Path) -> Iterator[Serving]:
    with serving(reference=genome, mcp_root=root) as running:
        yield running


def over_http(server: Serving) -> Client:
    return Client(f"{server.url}/mcp")


def ask(client: Client, *calls: tuple[str, dict[str, Any]]) -> list[types.CallToolResult]:
    """The results of calls, made one after the other over one connection."""

    async def run() -> list[types.CallToolResult]:
        async with client:
            return [await client.call_tool(name, arguments) for name, arguments in calls]

    return asyncio.run(run())


def answer(server: Serving, tool: str, **arguments: Any) -> Any:
    """The result of a tool, which is the same as text and as JSON."""
    [found] = ask(over_http(server), (tool, arguments))
    assert not found.is_error, found.content
    [content] = found.content
    assert isinstance(content, types.TextContent)
    assert json.loads(content.text) == found.structured_content
    return found.structured_content


def problem(server: Serving, tool: str, **arguments: Any) -> str:
    """The error of a tool, in one line."""
    [found] = ask(over_http(server), (tool, arguments))
    assert found.is_error
    assert found.structured_content is None
    [content] = found.content
    assert isinstance(content, types.TextContent)
    assert content.text.count("\n") == 0
    assert names_no_other_option(content.text)
    return content.text


def test_tools_have_the_names_of_evo2_mcp(server: Serving) -> None:
    async def run() -> types.ListToolsResult:
        async with over_http(server) as client:
            return await client.list_tools()

    found = asyncio.run(run()).tools
    assert [tool.name for tool in found] == NAMES
    for tool in found:
        assert tool.description
        assert tool.input_schema["type"] == "object"
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
    # Agents know these names from evo2-mcp.
    arguments = {tool.name: set(tool.input_schema["properties"]) for tool in found}
    assert arguments["score_sequence"] >= {"sequence", "checkpoint", "reduce_method"}
    assert arguments["score_snp"] >= {"sequence", "alternative_allele", "reduce_method"}
    assert arguments["embed_sequence"] >= {"sequence", "layer_name"}
    assert arguments["generate_sequence"] >= {"prompt", "n_tokens", "temperature", "top_k"}
    assert arguments["get_embedding_layers"] >= {"which"}


@pytest.mark.parametrize("how", ["mean", "sum"])
@pytest.mark.parametrize("strand", ["fwd", "both"])
def test_scores_are_those_of_the_command(server: Serving, how: str, strand: str) -> None:
    [row] = score_sequences([("x", PROMPT)], server.model, strand=strand)
    found = answer(
        server,
        "score_sequence",
        sequence=PROMPT.lower().replace("t", "u"),
        reduce_method=how,
        strand=strand,
        checkpoint="nano",
    )
    assert found == {
        "checkpoint": "nano",
        "sequence": PROMPT,
        "reduce_method": how,
        "scores": [row[f"{how}_logprob"]],
    }


def test_scores_of_a_file_are_those_of_the_command(server: Serving, root: Path) -> None:
    rows = list(score_sequences(root / "some.fa", server.model))
    for name in ("some.fa", "inside.fa", "deep/../some.fa", str(root / "some.fa")):
        found = answer(server, "score_sequence", fasta=name, reduce_method="sum")
        assert found["names"] == ["one", "two", "three"]
        assert found["lengths"] == [row["length"] for row in rows]
        assert found["scores"] == [row["sum_logprob"] for row in rows]
    assert found["scores"][2] is None  # one base has no prediction


@pytest.mark.parametrize("length", [3, 20, 21])
def test_a_central_base_is_scored_as_two_sequences_of_a_table(server: Serving, length: int) -> None:
    sequence = PROMPT[:length]
    middle = length // 2
    for allele in sorted(set("ACGT") - {sequence[middle]}):
        mutated = sequence[:middle] + allele + sequence[middle + 1 :]
        record = VariantRecord.from_columns(
            "x", 1, "A", "C", sequences=(sequence.encode(), mutated.encode())
        )
        [row] = score_variants([record], None, server.model, strand="fwd")
        found = answer(
            server, "score_snp", sequence=sequence, alternative_allele=allele, reduce_method="sum"
        )
        assert found["mutated_sequence"] == mutated
        assert sequence[found["position"] - 1] == found["reference_allele"]
        assert found["score_delta"] == row["EVO2_DELTA"]
        assert found["original_score"] == row["EVO2_REF"]
        assert found["mutated_score"] == row["EVO2_ALT"]
        mean = answer(server, "score_snp", sequence=sequence, alternative_allele=allele)
        assert mean["score_delta"] == row["EVO2_DELTA"] / (length - 1)
        [alone] = score_sequences([("x", mutated)], server.model)
        assert mean["mutated_score"] == pytest.approx(alone["mean_logprob"], abs=2e-6)


def test_variants_are_those_of_the_command(server: Serving, root: Path, genome: Path) -> None:
    [row] = score_variants(["chr1-40-G-C"], genome, server.model, window=64)
    assert answer(server, "score_snp", variant="chr1-40-G-C", window=64)["variants"] == [row]
    rows = list(score_variants(root / "deep" / "some.vcf", genome, server.model))
    assert answer(server, "score_snp", vcf="deep/some.vcf")["variants"] == rows
    assert [row["id"] for row in rows] == ["rs1", "rs1", "."]


def test_embeddings_are_those_of_the_command(server: Serving) -> None:
    layer = default_layer(server.model.config)
    whole = server.model.embed([PROMPT], layers=[layer], pool="none")[layer][0]
    found = answer(server, "embed_sequence", sequence=PROMPT)
    assert found["layer_name"] == layer
    assert torch.equal(torch.tensor(found["embedding"]), whole)
    for pool in ("mean", "max", "last"):
        vector = server.model.embed([PROMPT], layers=["blocks.2.mlp.down"], pool=pool)
        found = answer(
            server, "embed_sequence", sequence=PROMPT, layer_name="blocks.2.mlp.l3", pool=pool
        )
        assert torch.equal(torch.tensor(found["embedding"]), vector["blocks.2.mlp.down"][0])


def test_every_listed_layer_can_be_embedded(server: Serving) -> None:
    config = server.model.config
    assert answer(server, "get_embedding_layers")["layers"] == [default_layer(config)]
    every = answer(server, "get_embedding_layers", which="all")["layers"]
    assert every == part_names(config)
    calls = [("embed_sequence", {"sequence": "ACGT", "layer_name": name}) for name in every]
    assert not any(found.is_error for found in ask(over_http(server), *calls))


def test_samples_are_those_of_the_command(server: Serving) -> None:
    [expected] = server.model.generate(PROMPT, num_tokens=30, temperature=0.7, top_k=3, seed=5)
    asked = {"prompt": PROMPT.lower(), "n_tokens": 30, "temperature": 0.7, "top_k": 3}
    found = answer(server, "generate_sequence", **asked, seed=5)
    assert found["generated_sequence"] == expected.sequence
    assert found["prompt"] == PROMPT
    random = answer(server, "generate_sequence", **asked)
    assert answer(server, "generate_sequence", **asked, seed=random["seed"]) == random


def test_the_only_checkpoint_is_the_served_one(server: Serving) -> None:
    [only] = answer(server, "list_available_checkpoints")["result"]
    assert only["name"] == "nano"
    assert "600" in only["description"]
    asked = {"sequence": PROMPT}
    assert answer(server, "score_sequence", checkpoint="evo2-7b", **asked)["checkpoint"] == "nano"
    assert "has nano only" in problem(server, "score_sequence", checkpoint="other", **asked)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "outside.fa",
            "out/secret.fa",
            "../secret.fa",
            "deep/../../secret.fa",
            "../root-secret/x.fa",
        ),
        *(
            "/etc/passwd",
            "missing.fa",
            "deep",
            ".",
            "",
            "circle",
            "pipe",
            "a\0b",
            "x" * 5000,
            "~/x",
        ),
        *("-", "file:some.fa", "/dev/stdin"),
    ],
)
def test_no_file_outside_the_root_is_read(server: Serving, root: Path, name: str) -> None:
    for tool, argument in (("score_sequence", "fasta"), ("score_snp", "vcf")):
        told = problem(server, tool, **{argument: name})
        assert "not a file below --mcp-root" in told or told.endswith("...")
        told_absolutely = problem(server, tool, **{argument: f"{root}/../secret.fa"})
        assert "not a file below --mcp-root" in told_absolutely


def test_without_a_root_no_file_is_read(genome: Path, root: Path) -> None:
    with serving(reference=genome) as bare:
        told = problem(bare, "score_sequence", fasta=str(root / "some.fa"))
        assert "start it with --mcp-root" in told
    with pytest.raises(UserError, match=r"some\.fa: is not a folder"):
        Tools(Engine(ServeOptions()), "nano", root / "some.fa")


def test_limits_of_tools(server: Serving, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "ACGT" * 200
    assert "--max-bases" in problem(server, "score_sequence", sequence=long)
    assert "--max-bases" in problem(server, "generate_sequence", prompt="A", n_tokens=700)
    assert "--max-bases" in problem(server, "score_snp", variant="chr1-40-G-C", window=700)
    (root / "long.fa").write_text(f">long\n{long}\n")
    assert "--max-bases" in problem(server, "score_sequence", fasta="long.fa")
    monkeypatch.setattr(tools, "MAX_RECORDS", 2)
    assert "more than 2 records" in problem(server, "score_sequence", fasta="some.fa")
    monkeypatch.setattr(tools, "MAX_VALUES", 1000)
    assert "ask for pool 'mean'" in problem(server, "embed_sequence", sequence=PROMPT)
    answer(server, "embed_sequence", sequence=PROMPT, pool="mean")


@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        ("score_sequence", {}, "give one of sequence, fasta"),
        ("score_sequence", {"sequence": "ACGT", "fasta": "some.fa"}, "give one of"),
        ("score_sequence", {"sequence": "ACXT"}, "sequence: 'X' at position 3"),
        ("score_sequence", {"sequence": ""}, "is empty"),
        ("score_sequence", {"sequence": "ACGT", "reduce": "sum"}, "reduce: Extra inputs"),
        ("score_sequence", {"sequence": "ACGT", "reduce_method": "max"}, "'mean' or 'sum'"),
        ("score_snp", {"sequence": "AC", "alternative_allele": "G"}, "3 bases or more"),
        ("score_snp", {"sequence": "ACG", "alternative_allele": "C"}, "not C, the central base"),
        ("score_snp", {"sequence": "ACG", "alternative_allele": "N"}, "must be A, C, G or T"),
        ("score_snp", {"sequence": "ACG"}, "must be A, C, G or T"),
        ("score_snp", {"sequence": "ACG", "alternative_allele": "T", "window": 9}, "only with"),
        ("score_snp", {"variant": "chr1-4-G-C", "alternative_allele": "C"}, "only with sequence"),
        ("score_snp", {"variant": "what"}, "variant: what: not a variant"),
        ("score_snp", {"vcf": "bad.vcf"}, "bad.vcf"),
        ("score_sequence", {"fasta": "bad.fa"}, "bad.fa: is not FASTA"),
        ("embed_sequence", {"sequence": "ACGT", "layer_name": "blocks.99"}, "no such layer"),
        ("generate_sequence", {"prompt": "ACGT", "temperature": -1.0}, "temperature"),
        ("generate_sequence", {"prompt": "ACGT", "top_k": -1}, "top_k"),
        ("generate_sequence", {"prompt": "ACGT", "temperature": math.inf}, "temperature"),
        ("evo2_forward", {}, "not a tool"),
        ("evo2\nforward", {}, "evo2 forward: not a tool"),
    ],
    ids=str,
)
def test_an_invalid_call_is_refused_in_one_line(
    server: Serving, root: Path, tool: str, arguments: dict[str, Any], told: str
) -> None:
    found = problem(server, tool, **arguments)
    assert told in found
    assert str(root) not in found


def test_a_bug_is_logged_without_text_of_the_client(
    server: Serving, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: object, **__: object) -> Iterator[object]:
        raise KeyError("our own fault")

    monkeypatch.setattr(tools, "score_sequences", fails)
    assert problem(server, "score_sequence", sequence="GATTACAGATTACA") == (
        "an internal error; the server's log has more"
    )
    log = capsys.readouterr().err
    assert "our own fault" in log
    assert "score_sequence failed" in log
    assert "POST /mcp 200" in log
    assert "GATTACA" not in log


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """A call of a tool with some of its arguments, another message, or something invalid."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=50))
    name = draw(st.sampled_from([*NAMES, *NAMES, "", "x"]))
    known = {
        *("sequence", "fasta", "reduce_method", "strand", "alternative_allele", "variant", "vcf"),
        *("window", "layer_name", "pool", "prompt", "n_tokens", "temperature", "top_k", "seed"),
        *("which", "checkpoint", "other"),
    }
    arguments = draw(st.dictionaries(st.sampled_from(sorted(known)), VALUES, max_size=4))
    for field in ("sequence", "prompt"):
        if draw(st.booleans()):
            arguments[field] = draw(st.text("ACGT", min_size=1, max_size=9))
    message: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": draw(st.one_of(st.integers(-5, 5), TEXTS)),
        "method": draw(st.sampled_from(["tools/call"] * 8 + ["tools/list", "ping", "x"])),
        "params": {"name": name, "arguments": draw(st.one_of(st.just(arguments), VALUES))},
    }
    for field in draw(st.lists(st.sampled_from(sorted(message)), max_size=1)):
        message[field] = draw(VALUES)
    return json.dumps(message).encode()


@settings(max_examples=80)
@given(messages(), st.sampled_from([None, "2025-06-18", "2026-07-28", "x"]))
def test_any_request_gets_a_response(server: Serving, message: bytes, version: str | None) -> None:
    headers = HEADERS | {"Content-Type": "application/json"}
    if version is not None:
        headers["MCP-Protocol-Version"] = version
    found = server.client.post("/mcp", content=message, headers=headers)
    assert found.status_code in (200, 202, 400, 404, 413), (found.status_code, found.text)
    assert "Traceback" not in found.text
    # An answer is JSON, or an event that holds it.
    for line in found.text.splitlines():
        if (text := line.removeprefix("data: ")).startswith("{"):
            for content in json.loads(text).get("result", {}).get("content", []):
                assert "\n" not in content["text"]
    assert server.engine.num_jobs == 0
    assert server.engine.num_running == 0


def test_only_post_is_answered(server: Serving) -> None:
    """GET would open a stream on which nothing is ever sent."""
    for method in ("GET", "DELETE"):
        assert server.client.request(method, "/mcp", headers=HEADERS).status_code == 405
    simple = HEADERS | {"Content-Type": "text/plain"}
    assert server.client.post("/mcp", content="{}", headers=simple).status_code == 400


def test_tools_need_a_key_and_limit_the_size_of_requests(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first-key\n")
    with serving(api_key_file=keys, max_body=1) as server:
        assert server.client.post("/mcp", json={}, headers=HEADERS).status_code == 401

        async def run(key: str, sequence: str) -> types.CallToolResult:
            headers = {"Authorization": f"Bearer {key}"}
            async with (
                httpx2.AsyncClient(headers=headers) as http,
                Client(streamable_http_client(f"{server.url}/mcp", http_client=http)) as client,
            ):
                return await client.call_tool("score_sequence", {"sequence": sequence})

        assert not asyncio.run(run("first-key", "ACGT")).is_error
        with pytest.raises(Exception):  # noqa: B017, PT011 - the SDK's client has several
            asyncio.run(run("other-key", "ACGT"))
        headers = HEADERS | {"Authorization": "Bearer first-key"}
        large = server.client.post("/mcp", json={"x": "A" * 2**20}, headers=headers)
        assert large.status_code == 413


@pytest.mark.parametrize("version", ["2025-06-18", "2026-07-28"])
def test_disconnecting_frees_the_row(server: Serving, version: str) -> None:
    arguments = {"prompt": "A", "n_tokens": 590}
    client = {"name": "test", "version": "1"}
    meta = {
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientInfo": client,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "generate_sequence", "arguments": arguments, "_meta": meta},
    }
    headers = HEADERS | {
        "MCP-Protocol-Version": version,
        "Mcp-Method": "tools/call",
        "Mcp-Name": "generate_sequence",
    }
    request = server.client.build_request("POST", "/mcp", json=body, headers=headers)
    port = request.url.port
    assert port is not None
    head = b"POST /mcp HTTP/1.1\r\n" + b"".join(
        b"%s: %s\r\n" % each for each in request.headers.raw
    )
    before = dict(server.engine.counts.ended)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(head + b"\r\n" + request.content)
        wait_until(lambda: server.engine.num_running == 1)
    wait_until(lambda: server.engine.num_jobs == 0)
    assert server.engine.num_running == 0
    assert server.engine.counts.ended == before | {"abandoned": before["abandoned"] + 1}


def test_concurrent_requests_have_the_responses_of_sequential_ones(server: Serving) -> None:
    alone = [ask(over_http(server), call)[0].structured_content for call in CALLS]
    with ThreadPoolExecutor(len(CALLS)) as pool:
        found = pool.map(lambda call: ask(over_http(server), call)[0].structured_content, CALLS)
    assert list(found) == alone


def test_a_call_waits_for_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    open_model, opened = engines.open_model, []

    def slow(options: Any) -> Any:
        wait_until(lambda: tools_running() == 1)
        opened.append(1)
        return open_model(options)

    calls: list[Tools] = []
    monkeypatch.setattr(engines, "open_model", slow)
    init = Tools.__init__

    def remember(self: Tools, *given: Any) -> None:
        calls.append(self)
        init(self, *given)

    monkeypatch.setattr(Tools, "__init__", remember)

    def tools_running() -> int:
        return calls[0].num_running

    with serving(wait=False) as server:
        assert len(answer(server, "score_sequence", sequence="ACGT")["scores"]) == 1
    assert opened == [1]


def command(*words: str) -> StdioServerParameters:
    """The command as an agent starts it."""
    paths = os.pathsep.join(str(ROOT / shelf) for shelf in (".", "models", "kernels"))
    environment = {"PYTHONPATH": paths, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "")}
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "evo2cli", "serve", "--mcp", "--max-bases", "600", *words],
        env={name: value for name, value in environment.items() if value},
    )


@pytest.mark.slow
def test_stdio_gives_what_http_gives(
    server: Serving, genome: Path, root: Path, tmp_path: Path
) -> None:
    expected = ask(over_http(server), *CALLS)
    assert not any(found.is_error for found in expected)
    with (tmp_path / "log").open("w+") as log:
        started = command("--reference", str(genome), "--mcp-root", str(root))
        transport: AbstractAsyncContextManager[Any] = stdio_client(started, errlog=log)
        found = ask(Client(transport), *CALLS, ("score_sequence", {}))
        assert [each.structured_content for each in found[:-1]] == [
            each.structured_content for each in expected
        ]
        assert found[-1].is_error
        log.seek(0)
        lines = log.read().splitlines()
    assert lines[0] == "evo2: nano is ready"
    assert len(lines) == 1 + len(found)
    assert all(line.startswith("evo2: ") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("number", handled_stops())
def test_a_signal_ends_stdio_after_accepted_calls(number: signal.Signals) -> None:
    """stdout has answers and nothing else."""
    started = command("--grace", "50")
    client = {"protocolVersion": "2025-06-18", "capabilities": {}}
    client["clientInfo"] = {"name": "test", "version": "1"}
    long = {"name": "generate_sequence", "arguments": {"prompt": "A", "n_tokens": 100, "seed": 1}}
    short = {"name": "list_available_checkpoints", "arguments": {}}
    with subprocess.Popen(
        [started.command, *started.args],
        env={**os.environ, **(started.env or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        answers: dict[int, Any] = {}

        def send(method: str, params: dict[str, Any], number: int | None = None) -> None:
            assert process.stdin
            message = {"jsonrpc": "2.0", "method": method, "params": params}
            message |= {} if number is None else {"id": number}
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()

        def read(line: str) -> None:
            message = json.loads(line)
            assert message["id"] not in answers
            answers[message["id"]] = message["result"]

        try:
            send("initialize", client, 0)
            send("notifications/initialized", {})
            send("tools/call", short, 1)  # answered after the model is loaded
            while 1 not in answers:
                read(process.stdout.readline())
            process.stdin.write("not a message\n")
            for index in range(2, 7):
                send("tools/call", long, index)
            send("tools/call", short, 7)  # answered after the previous ones are accepted
            while 7 not in answers:
                read(process.stdout.readline())
            process.send_signal(number)
            for line in process.stdout:
                read(line)
            assert process.wait(60) == 0
        finally:
            process.kill()
        assert "Traceback" not in process.stderr.read()
    assert sorted(answers) == list(range(8))
    texts = [answers[index]["structuredContent"] for index in range(2, 7)]
    assert all(text == texts[0] and text["n_tokens"] == 100 for text in texts)


def test_stdio_refuses_options_of_the_address(command_line: CommandLine) -> None:
    code, printed, said = command_line("serve", "--mcp", "--port", "8001", "--host", "::1")
    assert (code, printed) == (2, "")
    assert said.startswith("evo2: --mcp answers over stdin and stdout, not at an address; drop --")


@pytest.mark.slow
def test_a_model_that_cannot_be_opened_ends_stdio() -> None:
    started = command("--model", "missing")
    environment = {**os.environ, **(started.env or {})}
    with subprocess.Popen(
        [started.command, *started.args],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.wait(60) == 2
        assert process.stdout
        assert process.stderr
        assert process.stdout.read() == ""
        said = process.stderr.read()
    assert said.count("\n") == 1
    assert "missing" in said
