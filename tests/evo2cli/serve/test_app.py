"""The server as a whole: /docs, and a model with an adapter."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from evo2cli.models import open_model
from evo2cli.options import ModelOptions
from tests.evo2cli.finetune.conftest import Run, base, small_table, tune
from tests.evo2cli.serve.conftest import GENOME, Serving, serving
from tests.evo2cli.serve.test_mcp import ask, over_http

__all__ = ["base", "tune"]  # fixtures

CommandLine = Callable[..., tuple[int, str, str]]
PROMPT = "ACGTTGCAGGCTTAACGGAT"


def test_docs_use_no_other_server(server: Serving) -> None:
    page = server.client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in re.sub(r"<!--.*?-->", "", page.text)
    files = re.findall(r"""(?:href|src|url)[=:]\s*["']([^"']+)["']""", page.text)
    assert len(files) == 4
    for path in files:
        assert path.startswith("/")
        assert server.client.get(path).status_code == 200
    for path in ("/docs/static/../core.py", "/docs/static/..%2fcore.py", "/docs/static/"):
        assert server.client.get(path).status_code == 404


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_docs_are_drawn_without_a_network(server: Serving, tmp_path: Path) -> None:
    drawn = subprocess.run(
        [
            *("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *(f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"),
            *("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"{server.url}/docs"),
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    ).stdout
    # Only the script, once it runs, has the paths from /openapi.json.
    for path in server.client.get("/openapi.json").json()["paths"]:
        assert f'data-path="{path}"' in drawn


def test_a_model_with_an_adapter_gives_the_numbers_of_the_command(
    tune: Run, base: str, genome: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    tune(small_table(tmp_path / "x.tsv", "classify"), method="lora", lr=1e-2)
    run = tmp_path / "run"
    fasta, vcf = tmp_path / "x.fa", tmp_path / "x.vcf"
    fasta.write_text(f">sequence 0\n{PROMPT}\n>sequence\t1\n{GENOME[:150].decode()}\n")
    vcf.write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t40\t.\tG\tC\t.\t.\t.\nchr1\t90\t.\tA\tT\t.\t.\t.\n"
    )
    output = tmp_path / "scored.jsonl"
    words = ("--model", base, "--device", "cpu", "-O", str(output))

    def scored(*inputs: str) -> list[dict[str, object]]:
        code, _, said = command_line("score", *inputs, *words)
        assert code == 0, said
        return [json.loads(line) for line in output.read_text().splitlines()]

    of_variants = (str(vcf), "-R", str(genome), "--window", "64")
    sequences = scored(str(fasta), "--adapter", str(run))
    variants = scored(*of_variants, "--adapter", str(run))
    assert sequences != scored(str(fasta))
    assert variants != scored(*of_variants)
    model = open_model(ModelOptions(model=base, adapter=run, device="cpu"))
    [sample] = model.generate(PROMPT, num_tokens=20, seed=3)
    given = {"model": base, "adapter": run, "reference": genome, "device": "cpu"}
    with serving(**given, max_bases=250, mcp_root=tmp_path) as server:
        assert server.client.get("/v1/metadata").json()["adapter"] == "run"
        found = server.post("/v1/score", sequences=[PROMPT, GENOME[:150].decode()])["scores"]
        named = ["chr1-40-G-C", "chr1-90-A-T"]
        rows = server.post("/v1/variants", variants=named, window=64)["variants"]
        completed = server.post(
            "/v1/completions", model="evo2", prompt=PROMPT, max_tokens=20, seed=3
        )
        [scores, deltas] = ask(
            over_http(server),
            ("score_sequence", {"fasta": "x.fa"}),
            ("score_snp", {"vcf": "x.vcf", "window": 64}),
        )
    assert scores.structured_content is not None
    assert scores.structured_content["scores"] == [row["mean_logprob"] for row in sequences]
    assert deltas.structured_content == {"checkpoint": "nano", "variants": rows}
    for one, other in zip(found, sequences, strict=True):
        assert one["sum_logprob"] == other["sum_logprob"]
        assert one["mean_logprob"] == other["mean_logprob"]
    assert [
        {key: row[key] for key in other} for row, other in zip(rows, variants, strict=True)
    ] == (variants)
    assert completed["choices"][0]["text"] == sample.sequence
