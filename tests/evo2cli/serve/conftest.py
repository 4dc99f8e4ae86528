"""A server in a thread of this process, on a free port."""

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from evo2cli.options import flag
from evo2cli.serve.app import make_app
from evo2cli.serve.engine import Engine
from evo2cli.serve.options import ServeOptions
from stripedhyena2 import StripedHyena2
from tests.ranks import wait_until

GENOME = b"ACGTTGCAGGCTTAACGGATCCATTGCAGTNACGGTTAACCGTAGGCATCGATTACAGCATGCCCGGAATTTAGC" * 4


@dataclass(frozen=True)
class Serving:
    """A running server."""

    url: str
    engine: Engine
    client: httpx.Client

    @property
    def model(self) -> StripedHyena2:
        return self.engine.require_served().model

    def post(self, path: str, **body: Any) -> Any:
        """The JSON of a response, whose status must be 200."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


def is_ready(client: httpx.Client) -> bool:
    """Whether a server that was started as a command is ready."""
    try:
        return client.get("/v1/health/ready").status_code == 200
    except httpx.TransportError:
        return False


def names_no_other_option(message: str) -> bool:
    """Whether all options in a message are those of `evo2 serve`: a client has fields instead."""
    named = set(re.findall(r"--[a-z][a-z-]*", message))
    return named <= {flag(ServeOptions, field.name) for field in fields(ServeOptions)}


@contextmanager
def serving(*, wait: bool = True, **given: Any) -> Iterator[Serving]:
    """A server with these options, ready when the block begins unless `wait` is false."""
    options = ServeOptions(**{"max_bases": 600, "batch_size": 4, **given})
    engine = Engine(options)
    app = make_app(options, engine, "nano")
    config = uvicorn.Config(app, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    with listening, httpx.Client(base_url=url, timeout=600) as client:
        engine.start()
        thread.start()
        try:
            wait_until(lambda: engine.is_ready or engine.failure is not None or not wait)
            yield Serving(url, engine, client)
        finally:
            server.should_exit = True
            engine.close(0)
            engine.join(60)
            thread.join(60)
    assert not thread.is_alive()
    assert engine.failure is None


@pytest.fixture(scope="package")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("genome") / "genome.fa"
    path.write_bytes(b">chr1\n" + GENOME + b"\n")
    return path


@pytest.fixture(scope="package")
def annotation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("annotation") / "genes.gff3"
    lines = [
        ("gene", 11, 60, "ID=g1;Name=ABC1"),
        ("mRNA", 11, 60, "ID=t1;Parent=g1"),
        ("exon", 11, 35, "Parent=t1"),
        ("exon", 50, 60, "Parent=t1"),
        ("CDS", 20, 35, "Parent=t1"),
        ("gene", 100, 200, "ID=g2;Name=<b>XYZ2</b>"),
    ]
    text = [f"chr1\tx\t{kind}\t{a}\t{b}\t.\t-\t.\t{more}\n" for kind, a, b, more in lines]
    path.write_text("##gff-version 3\n" + "".join(text))
    return path


@pytest.fixture(scope="package")
def server(genome: Path, annotation: Path) -> Iterator[Serving]:
    with serving(reference=genome, gff=annotation) as running:
        yield running
