"""Keys, host names and sizes; any request gets a status and a message of one line."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo2cli.errors import UserError
from evo2cli.serve.guard import is_loopback, read_keys
from evo2cli.serve.options import ServeOptions
from tests.evo2cli.serve.conftest import Serving, names_no_other_option, serving

PATHS = {
    "/biology/arc/evo2/generate": [
        *("sequence", "num_tokens", "temperature", "top_k", "top_p", "random_seed"),
        *("enable_logits", "enable_sampled_probs"),
    ],
    "/v1/biology/arc/evo2-7b/forward": ["sequence", "output_layers"],
    "/v1/completions": [
        *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "n", "seed"),
        *("logprobs", "echo", "stream", "logit_bias"),
    ],
    "/v1/embeddings": ["model", "input", "encoding_format", "layer", "pool", "strand"],
    "/v1/score": ["sequences", "strand", "per_base"],
    "/v1/variants": ["variants", "window", "windows", "strand", "on_ref_mismatch"],
    "/v1/saturate": ["region", "sequence", "window"],
    "/v1/track": ["region", "sequence", "value", "strand", "window"],
    "/v1/genes": ["region"],
    "/v1/generate": [
        *("prompt", "tokens", "num_samples", "seed", "temperature", "top_k", "top_p", "stream"),
        *("min_length", "stop_codon", "stop_motif", "forbid", "both_strands", "max_homopolymer"),
        *("fix", "gc", "gc_window"),
    ],
}
TEXTS = st.one_of(
    st.text("ACGTN|_;acgu", max_size=20),
    st.text(max_size=8),
    st.sampled_from(
        [
            "nano",
            "norm",
            "blocks.0",
            "decoder.layers.0.mlp",
            "chr1:3-9",
            "chr1-2-C-T",
            "fwd",
            "1\t2\t.\tC\tG\t.\t.\t.",
            "\ud800",
            "chr1:9-3",
            "entropy",
            "error",
            "base64",
        ]
    ),
)
NUMBERS = st.one_of(
    st.integers(-2, 12), st.sampled_from([2**31, 2**63, 10**400]), st.floats(), st.booleans()
)
SCALARS = st.one_of(st.none(), TEXTS, NUMBERS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=2),
    max_leaves=5,
)


@st.composite
def bodies(draw: st.DrawFn) -> tuple[str, bytes]:
    """A path, and a body with some of its fields, or a body that is not JSON."""
    path = draw(st.sampled_from(sorted(PATHS)))
    if draw(st.integers(0, 9)) == 0:
        return path, draw(st.binary(max_size=50))
    fields = draw(st.lists(st.sampled_from(PATHS[path]), unique=True))
    body = {field: draw(VALUES) for field in fields}
    for field in ("sequence", "prompt", "input"):  # sometimes a valid value
        if field in PATHS[path] and draw(st.booleans()):
            body[field] = draw(st.text("ACGT", min_size=1, max_size=9))
    if "model" in PATHS[path]:
        body["model"] = "nano"
    return path, json.dumps(body).encode()


@settings(max_examples=80)
@given(bodies())
def test_any_request_gets_a_response(server: Serving, asked: tuple[str, bytes]) -> None:
    path, body = asked
    answer = server.client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400, 404, 413, 422), (answer.status_code, answer.text)
    assert "Traceback" not in answer.text
    if answer.status_code != 200:
        message = answer.json()["error"]["message"]
        assert message
        assert names_no_other_option(message)
    assert server.engine.num_jobs == 0
    assert server.engine.num_running == 0


def test_no_path_of_a_request_opens_a_file(server: Serving, tmp_path: Path) -> None:
    secret = tmp_path / "secret.fa"
    secret.write_text(">chr1\nACGT\n")
    opened: list[str] = []
    is_watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if is_watching and event == "open" and "secret" in str(arguments[0]):
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    for path, fields in PATHS.items():
        for wrap in (lambda text: text, lambda text: [text]):
            for name in (str(secret), f"file://{secret}", f"../{secret.name}"):
                body: dict[str, Any] = {"model": "nano"}
                body |= {
                    field: wrap(name) for field in fields if field not in ("num_tokens", "model")
                }
                assert server.client.post(path, json=body).status_code == 422
    for name in (f"/{secret}", "/../../etc/passwd", "/static/..%2f..%2fetc%2fpasswd"):
        assert server.client.get(name).status_code == 404
    is_watching = False
    assert opened == []


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("first-key\n\n  second-key\n")
    with serving(api_key_file=keys, max_body=1) as running:
        yield running


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer first-key", 200),
        ("bearer second-key", 200),
        ("Bearer first-ke", 401),
        ("Bearer first-key2", 401),
        ("Bearer", 401),
        ("Basic first-key", 401),
        ("first-key", 401),
    ],
)
def test_a_key_is_needed(guarded: Serving, header: str | None, status: int) -> None:
    headers = {} if header is None else {"Authorization": header}
    body = {"sequences": ["ACGT"]}
    answer = guarded.client.post("/v1/score", json=body, headers=headers)
    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) == (status == 401)
    assert guarded.client.get("/metrics", headers=headers).status_code == status
    assert guarded.client.get("/docs", headers=headers).status_code == status
    assert guarded.client.get("/v1/health/ready").status_code == 200
    assert guarded.client.get("/", headers=headers).status_code == 200  # it asks for the key


def test_a_request_has_a_maximum_size(guarded: Serving) -> None:
    """By the header Content-Length, and by the bytes received."""
    headers = {"Authorization": "Bearer first-key", "Content-Type": "application/json"}

    def post(content: Any) -> int:
        return guarded.client.post("/v1/score", content=content, headers=headers).status_code

    assert post(b" " * (2**20 - 30) + b'{"sequences": ["ACGT"]}') == 200
    assert post(b" " * 2**20 + b'{"sequences": ["ACGT"]}') == 413
    assert post(b" " * 2**18 for _ in range(5)) == 413
    assert guarded.client.get("/v1/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200)),
        *(("evil.example", 403), ("localhost.evil.example", 403), ("[::1", 403), ("", 403)),
    ],
)
def test_requests_for_other_host_names_are_refused(server: Serving, host: str, status: int) -> None:
    answer = server.client.get("/v1/models", headers={"Host": host})
    assert answer.status_code == status


def test_pages_of_other_sites_cannot_read_responses(server: Serving) -> None:
    origin = {"Origin": "https://evil.example"}
    asked = {**origin, "Access-Control-Request-Method": "POST"}
    preflight = server.client.options("/v1/score", headers=asked)
    answer = server.client.post("/v1/score", json={"sequences": ["ACGT"]}, headers=origin)
    for each in (preflight, answer):
        assert not [name for name in each.headers if name.startswith("access-control")]
    assert preflight.status_code == 405
    # What a page may send without a preflight request is not read as JSON.
    simple = {**origin, "Content-Type": "text/plain"}
    body = '{"sequences": ["ACGT"]}'
    refusal = server.client.post("/v1/score", content=body, headers=simple)
    assert refusal.status_code == 422
    assert "send JSON, with the header Content-Type" in refusal.json()["error"]["message"]


def test_unknown_paths_and_methods_are_refused_in_the_same_form(server: Serving) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/v1/score", 405)):
        answer = server.client.request(method, path)
        assert answer.status_code == answer.json()["error"]["code"] == status
    assert answer.headers["Allow"] == "POST"
    assert answer.json()["detail"] == "GET: is not answered at this path; use POST"


def test_logs_and_metrics_hold_no_text_of_a_client(
    server: Serving, capsys: pytest.CaptureFixture[str]
) -> None:
    server.post("/v1/score", sequences=["GATTACAGATTACA"])
    server.client.post("/v1/score", json={"sequences": ["GATTACAGATTACAX"]})
    server.client.get("/GATTACAGATTACA?sequence=GATTACAGATTACA")
    log = capsys.readouterr().err
    assert "POST /v1/score 200" in log
    assert "GET other 404" in log
    assert "GATTACA" not in log + server.client.get("/metrics").text


@pytest.mark.parametrize("text", ["", "\n\n", "two words\n", "schlüssel\n", "k\n" * 1001], ids=repr)
def test_invalid_keys_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(UserError, match="--api-key-file"):
        read_keys(path)
    with pytest.raises(UserError, match="missing"):
        read_keys(tmp_path / "missing")
    assert read_keys(None) == ()


def test_by_default_it_listens_on_loopback() -> None:
    assert is_loopback(ServeOptions().host)
    assert [is_loopback(host) for host in ("localhost", "::1", "0.0.0.0", "::", "node7")] == [  # noqa: S104
        *(True, True, False, False, False)
    ]


def test_every_path_is_fuzzed(server: Serving) -> None:
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    posts = {path for path, methods in paths.items() if "post" in methods}
    fuzzed = {path.replace("/v1/biology/arc/evo2-7b", "/biology/arc/evo2") for path in PATHS}
    assert posts == fuzzed
