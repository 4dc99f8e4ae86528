"""Every path of every API gives what the command or the Python function gives."""

import base64
import io
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch

from evo2cli.generate.options import GenerateOptions
from evo2cli.generate.run import generate
from evo2cli.genome.alphabet import reverse_complement
from evo2cli.genome.genes import read_genes
from evo2cli.genome.interval import Interval
from evo2cli.genome.reference import Reference
from evo2cli.saturate.records import snv_records
from evo2cli.score import score_sequences, score_variants
from evo2cli.serve import reading
from evo2cli.track.options import Value
from evo2cli.track.run import Section, section_values
from tests.evo2cli.serve.conftest import GENOME, Serving, names_no_other_option

PROMPT = "ACGTTGCAGGCTTAACGGAT"
VARIANTS = ["chr1-40-G-C", "chr1:5:T>TAA", "1-90-A-T,C", "chr1-7-A-C", "chr2-1-A-C"]


@pytest.fixture(scope="module")
def client(server: Serving) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("strand", ["fwd", "rc", "both"])
def test_scores_are_those_of_the_command(server: Serving, strand: str) -> None:
    sequences = [PROMPT, "acguN", "|D__BACTERIA;P__BACILLOTA|" + PROMPT, "G"]
    named = [(f"sequence {index}", text) for index, text in enumerate(sequences)]
    expected = list(score_sequences(named, server.model, strand=strand))
    assert server.post("/v1/score", sequences=sequences, strand=strand)["scores"] == expected


@pytest.mark.parametrize("strand", ["fwd", "rc"])
def test_scores_by_base_are_those_of_the_model(server: Serving, strand: Any) -> None:
    (found,) = server.post("/v1/score", sequences=[PROMPT], strand=strand, per_base=True)["scores"]
    (logprobs_L,) = server.model.score([PROMPT], reduce="none", strand=strand)
    assert found["logprobs"] == [round(value, 6) for value in logprobs_L.tolist()]


@pytest.mark.parametrize(
    "given", [{}, {"windows": "anchored", "strand": "rc", "indel_mode": "anchored"}], ids=str
)
def test_variants_are_those_of_the_command(
    server: Serving, genome: Path, given: dict[str, str]
) -> None:
    expected = list(score_variants(VARIANTS, genome, server.model, window=64, **given))  # type: ignore[arg-type]
    found = server.post("/v1/variants", variants=VARIANTS, window=64, **given)["variants"]
    assert found == expected
    line = "chr1\t40\trs1\tG\tC\t.\t.\t.\n"
    (row,) = server.post("/v1/variants", variants=[line], window=64, **given)["variants"]
    assert row == expected[0] | {"id": "rs1"}


def test_saturation_is_that_of_the_command(server: Serving, genome: Path) -> None:
    with Reference.open(genome) as opened:
        records = list(snv_records(opened, Interval("chr1", 28, 33)))  # one of them is N
        expected = list(score_variants(records, opened, server.model, window=64))
    found = server.post("/v1/saturate", region="chr1:29-33", window=64)["variants"]
    assert found == expected
    assert len(found) == 12


def test_a_sequence_is_treated_as_a_genome(server: Serving) -> None:
    """Saturation of a sequence compares it with its mutants."""
    whole = server.post("/v1/saturate", sequence=GENOME[:20].decode(), window=64)["variants"]
    assert {row["chrom"] for row in whole} == {"sequence"}
    assert len(whole) == 3 * 20
    (low, high) = (
        server.post("/v1/score", sequences=[text], strand="both")["scores"][0]
        for text in (GENOME[:20].decode(), "C" + GENOME[1:20].decode())
    )
    delta = high["sum_logprob"] - low["sum_logprob"]
    assert whole[0]["alt"] == "C"
    assert whole[0]["EVO2_DELTA"] == pytest.approx(delta, abs=1e-4)


@pytest.mark.parametrize("value", list(Value))
def test_tracks_are_those_of_the_command(server: Serving, value: Value) -> None:
    found = server.post("/v1/track", region="chr1:101-150", value=value.value, window=30)
    section = Section("chr1", 100, GENOME[70:100], GENOME[100:150])
    ((start, values),) = section_values(server.model, value, section)
    expected = {"name": "chr1", "start": start, "bases": GENOME[100:150].decode()}
    assert found == expected | {"values": [round(v, 6) + 0.0 for v in values]}
    alone = server.post("/v1/track", sequence=GENOME[:50].decode(), value=value.value)
    ((start, values),) = section_values(
        server.model, value, Section("sequence", 0, b"", GENOME[:50])
    )
    assert (alone["start"], len(alone["values"])) == (1, 49)
    assert alone["values"] == [round(v, 6) + 0.0 for v in values]


@pytest.mark.parametrize("value", list(Value))
@pytest.mark.parametrize("end", [250, len(GENOME)])
def test_a_reverse_track_is_the_track_of_the_reverse_complement(
    server: Serving, value: Value, end: int
) -> None:
    """Each base given those to its right; the last base of a contig has no value."""
    found = server.post(
        "/v1/track", region=f"chr1:201-{end}", value=value.value, strand="rc", window=40
    )
    reverse = reverse_complement(GENOME[200 : end + 40])
    cut = len(reverse) - (end - 200)
    ((_, values),) = section_values(
        server.model, value, Section("x", 0, reverse[:cut], reverse[cut:])
    )
    assert found["start"] == 200
    assert found["values"] == [round(v, 6) + 0.0 for v in values[::-1]]
    assert found["bases"] == GENOME[200 : 200 + len(values)].decode()
    assert len(values) == end - 200 - (end == len(GENOME))


def test_constrained_sequences_are_those_of_the_command(server: Serving, tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "tokens": 40,
        "num_samples": 3,
        "seed": 7,
        "forbid": ["EcoRI", "GCC"],
        "max_homopolymer": 3,
        "fix": ["1:ATG"],
        "gc": "0.4-0.6",
    }
    output = tmp_path / "x.jsonl"
    generate(GenerateOptions(prompt=(PROMPT,), json=True, device="cpu", output=output, **asked))
    expected = [json.loads(line) for line in output.read_text().splitlines()]
    found = server.post("/v1/generate", prompt=PROMPT, **asked)["sequences"]
    assert len(found) == 3
    for row, want in zip(found, expected, strict=True):
        for name in ("logprobs", "drawn_logprobs", "mean_logprob"):
            assert row.pop(name) == pytest.approx(want.pop(name), abs=1e-4)
        assert row == want
        assert row["sequence"].startswith("ATG")
        assert 0.4 <= row["gc"] <= 0.6
        assert not re.search("GCC|GAATTC|(.)\\1\\1\\1", row["sequence"])


def test_a_stream_of_generation_has_the_bases_of_the_whole(server: Serving) -> None:
    asked = {"prompt": PROMPT, "tokens": 30, "num_samples": 2, "seed": 1, "stop_codon": "prompt"}
    whole = server.post("/v1/generate", **asked)["sequences"]
    answer = server.client.post("/v1/generate", json={**asked, "stream": True})
    *events, end = [line for line in answer.text.split("\n\n") if line]
    assert end == "data: [DONE]"
    texts: dict[int, str] = {1: "", 2: ""}
    logprobs: dict[int, list[float]] = {1: [], 2: []}
    rows = {}
    for event in events:
        found = json.loads(event.removeprefix("data: "))
        if "base" in found:
            texts[found["sample"]] += found["base"]
            logprobs[found["sample"]].append(found["logprob"])
        else:
            rows[found["sequence"]["sample"]] = found["sequence"]
    assert [rows[number] for number in (1, 2)] == whole
    for row in whole:
        assert texts[row["sample"]] == row["sequence"]
        assert logprobs[row["sample"]] == pytest.approx(row["logprobs"], abs=1e-6)


def test_genes_of_a_region_are_those_of_the_file(server: Serving, annotation: Path) -> None:
    genes = read_genes(annotation)
    found = server.post("/v1/genes", region="1:21-40")["genes"]
    assert found == json.loads(json.dumps([asdict(g) for g in genes.overlapping("chr1", 20, 40)]))
    assert [gene["name"] for gene in found] == ["ABC1"]
    assert server.post("/v1/genes", region="chr1:250-260")["genes"] == []
    assert server.client.get("/v1/metadata").json()["genes"] == len(genes) == 2


@pytest.mark.parametrize("prefix", ["/biology/arc/evo2", "/v1/biology/arc/evo2-40b"])
def test_nim_generates_what_the_command_generates(server: Serving, prefix: str) -> None:
    (expected,) = server.model.generate(
        PROMPT, num_tokens=30, temperature=0.7, top_k=3, seed=5, top_p=1.0
    )
    found = server.post(
        f"{prefix}/generate",
        sequence=PROMPT,
        num_tokens=30,
        random_seed=5,
        enable_logits=True,
        enable_sampled_probs=True,
        enable_elapsed_ms_per_token=True,
    )
    assert found["sequence"] == expected.sequence
    assert found["sampled_probs"] == pytest.approx([math.exp(x) for x in expected.logprobs])
    logits = torch.tensor(found["logits"])
    assert logits.shape == (30, 512)
    picked = logits.log_softmax(1)[range(30), list(expected.ids)]
    assert picked.tolist() == pytest.approx(list(expected.logprobs), abs=1e-5)
    assert len(found["elapsed_ms_per_token"]) == 30
    assert isinstance(found["elapsed_ms"], int)


def test_nim_returns_only_what_is_enabled(server: Serving) -> None:
    """Null means the default, and both 0 and 1 disable top_p."""
    asked = {"sequence": PROMPT, "random_seed": 1}
    found = server.post("/biology/arc/evo2/generate", **asked)
    assert len(found["sequence"]) == 100
    assert found["logits"] is found["sampled_probs"] is found["elapsed_ms_per_token"] is None
    nothing = dict.fromkeys(("temperature", "top_k", "top_p"))
    for other in (nothing, {"top_p": 1.0}):
        again = server.post("/biology/arc/evo2/generate", **asked, **other, num_tokens=10)
        assert again["sequence"] == found["sequence"][:10]


def test_nim_gives_layers_by_the_names_of_both_versions(server: Serving) -> None:
    names = {
        "decoder.layers.1": ["blocks.1"],
        "decoder.layers.3.self_attention": ["blocks.3.mixer"],
        "decoder.layers.0.mixer": ["blocks.0.mixer"],
        "decoder.layers.2.mlp": ["blocks.2.mlp"],
        "decoder.layers.2.mlp.linear_fc1": ["blocks.2.mlp.gate", "blocks.2.mlp.up"],
        "decoder.layers.2.mlp.linear_fc2": ["blocks.2.mlp.down"],
        "blocks.2.mlp.l3": ["blocks.2.mlp.down"],
        "decoder.final_norm": ["norm"],
        "embedding": ["embedding"],
    }
    ours = sorted({each for modules in names.values() for each in modules})
    expected = server.model.embed([PROMPT], layers=ours, pool="none")
    with torch.no_grad():
        logits_LV = server.model(torch.tensor(list(PROMPT.encode()))[None])[0]
    layers = [*names, "output_layer", "unembed"]
    first = second = None
    for prefix, axis in (("/biology/arc/evo2", 1), ("/v1/biology/arc/evo2-7b", 0)):
        answer = server.client.post(
            f"{prefix}/forward", json={"sequence": PROMPT, "output_layers": layers}
        )
        assert "static table" in answer.headers["warning"]
        data = np.load(io.BytesIO(base64.b64decode(answer.json()["data"])))
        assert sorted(data) == sorted(f"{name}.output" for name in layers)
        for name, modules in names.items():
            want = torch.cat([expected[module][0] for module in modules], 1).unsqueeze(axis)
            assert np.array_equal(data[f"{name}.output"], want.numpy()), name
        for name in ("output_layer", "unembed"):
            assert np.allclose(data[f"{name}.output"], logits_LV.unsqueeze(axis), atol=1e-4)
        first, second = second, answer.json()["data"]
    turned = server.client.post(
        "/biology/arc/evo2/forward",
        json={"sequence": PROMPT, "output_layers": layers},
        headers={"X-Evo2-Layout": "batch-first"},
    )
    assert turned.json()["data"] == second != first


def test_openai_generates_what_the_command_generates(
    server: Serving, client: openai.OpenAI
) -> None:
    prompts = [PROMPT, "GGG"]
    expected = server.model.generate(prompts, num_tokens=9, num_samples=2, seed=3)
    found = client.completions.create(
        model="nano", prompt=prompts, max_tokens=9, n=2, seed=3, logprobs=2
    )
    assert [choice.text for choice in found.choices] == [each.sequence for each in expected]
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]
    assert found.usage is not None
    assert found.usage.completion_tokens == 36
    for choice, each in zip(found.choices, expected, strict=True):
        assert choice.finish_reason == "length"
        assert choice.logprobs is not None
        assert choice.logprobs.token_logprobs == pytest.approx(list(each.logprobs), abs=1e-5)
        assert all(len(top) == 2 for top in choice.logprobs.top_logprobs or [])


def test_a_stream_of_completions_has_the_text_of_the_whole(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "evo2",
        "prompt": [PROMPT, "AC"],
        "max_tokens": 12,
        "seed": 1,
        "logprobs": 1,
    }
    whole = client.completions.create(**asked)
    texts, logprobs, offsets = ["", ""], [[], []], [[], []]  # type: ignore[var-annotated]
    ends = []
    for event in client.completions.create(**asked, stream=True):
        (choice,) = event.choices
        texts[choice.index] += choice.text
        logprobs[choice.index] += choice.logprobs.token_logprobs
        offsets[choice.index] += choice.logprobs.text_offset
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert texts == [choice.text for choice in whole.choices]
    assert ends == ["length", "length"]
    assert logprobs == [choice.logprobs.token_logprobs for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]


def test_echo_with_logprobs_scores(server: Serving, client: openai.OpenAI) -> None:
    found = client.completions.create(
        model="nano", prompt=PROMPT, max_tokens=0, echo=True, logprobs=1
    )
    (choice,) = found.choices
    assert choice.text == PROMPT
    assert choice.logprobs is not None
    first, *rest = choice.logprobs.token_logprobs or []
    assert first is None
    (expected,) = server.model.score([PROMPT], reduce="none")
    assert rest == expected.tolist()
    tops = choice.logprobs.top_logprobs or []
    likeliest = [next(iter(top.values())) for top in tops[1:]]
    assert all(top >= own - 1e-6 for top, own in zip(likeliest, rest, strict=True))
    both = client.completions.create(
        model="nano", prompt=PROMPT, max_tokens=3, echo=True, logprobs=1, seed=0
    ).choices[0]
    assert both.text[: len(PROMPT)] == PROMPT
    assert both.logprobs is not None
    assert len(both.logprobs.token_logprobs or []) == len(both.text) == len(PROMPT) + 3
    assert both.logprobs.text_offset == list(range(len(both.text)))


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings_are_those_of_the_model(
    server: Serving, client: openai.OpenAI, encoding: Any
) -> None:
    texts = [PROMPT, "GATTACA"]
    found = client.embeddings.create(model="nano", input=texts, encoding_format=encoding)
    (vectors_ND,) = server.model.embed(texts).values()
    for each, vector in zip(found.data, vectors_ND, strict=True):
        got = each.embedding
        if isinstance(got, str):
            got = np.frombuffer(base64.b64decode(got), "<f4").tolist()
        assert got == vector.tolist()


def test_token_ids_are_ascii_codes(client: openai.OpenAI) -> None:
    as_text = client.embeddings.create(model="nano", input="GATTACA")
    as_tokens = client.embeddings.create(model="nano", input=list(b"GATTACA"))
    assert as_text.data == as_tokens.data


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/score", {"sequences": ["A", "ACGX"]}, r"^sequences\[1\]: 'X' at position 4"),
        ("/v1/score", {"sequences": [""]}, r"^sequences\[0\]: is empty"),
        ("/v1/score", {"sequences": ["A|D__X|"]}, r"^sequences\[0\]: .* put it all first"),
        ("/v1/score", {"sequences": ["|ACGT|A"]}, r"^sequences\[0\]: \|ACGT\|: not a lineage"),
        ("/v1/score", {"sequences": ["A" * 601]}, "601 bases .* more than the 600"),
        ("/v1/score", {"sequences": ["A"] * 1025}, "1,025 sequences at once"),
        ("/v1/score", {"sequences": ["ACG"], "per_base": True, "strand": "both"}, "one strand"),
        (
            "/v1/variants",
            {"variants": ["rs123"]},
            r"^variants\[0\]: rs123: is an rs number",
        ),
        ("/v1/variants", {"variants": ["chr1-1-A-C"], "window": 601}, "window: 601 bases"),
        (
            "/v1/variants",
            {"variants": ["chr1-1-A-C"], "window": 1},
            "^body.window: .* equal to 2",
        ),
        ("/v1/variants", {"variants": ["chr1\t1\t.\tA\tC"]}, r"^variants\[0\]: 5 columns"),
        ("/v1/variants", {"variants": ["\t\t"]}, r"^variants\[0\]: .*not a variant"),
        (
            "/v1/variants",
            {"variants": ["chr1-1-C-A"], "on_ref_mismatch": "error"},
            "^chr1:1 C>A: .*; is it the right build\\? on_ref_mismatch skip leaves",
        ),
        ("/v1/saturate", {"region": "chr9:1-3"}, "^region: chr9:1-3: .*no contig chr9"),
        ("/v1/saturate", {"region": "chr1:1-3", "sequence": "ACG"}, "either a region or"),
        ("/v1/track", {}, "either a region or"),
        ("/v1/genes", {"region": "chr1:0-3"}, "^region: chr1:0-3: needs 1 <= from"),
        ("/v1/generate", {"prompt": "A", "tokens": 600}, "^prompt: 601 bases"),
        ("/v1/generate", {"prompt": "AX"}, "^prompt: 'X' at position 2"),
        (
            "/v1/generate",
            {"prompt": "A", "tokens": 3, "min_length": 5},
            "^min_length 5 is more than",
        ),
        (
            "/v1/generate",
            {"prompt": "A", "seed": 2**63},
            "^seed 9223372036854775808: must be",
        ),
        ("/v1/generate", {"prompt": "A", "top_k": 2**63}, "^top_k 9223372036854775808: must"),
        ("/v1/generate", {"prompt": "A", "num_samples": 257}, "257 sequences at once"),
        ("/v1/generate", {"prompt": "A", "forbid": ["A|C|G|T"]}, "no sequence of 1 to 100 bases"),
        ("/v1/generate", {"prompt": "A", "forbid": ["(" * 21]}, "more than 20 deep"),
        ("/v1/generate", {"prompt": "A", "forbid": ["A" * 1001]}, "at most 1000 characters"),
        ("/v1/generate", {"prompt": "A", "fix": ["A"] * 101}, "at most 100 items"),
        ("/v1/generate", {"prompt": "A", "fix": ["x"]}, "^fix x: must be a position"),
        (
            "/v1/generate",
            {"prompt": "A", "fix": ["1:A", "1:C"]},
            "another fix has a different",
        ),
        ("/v1/generate", {"prompt": "A", "tokens": 2, "fix": ["3:A"]}, "ends at 3, after tokens 2"),
        ("/v1/generate", {"prompt": "A", "gc_window": 5}, "^gc_window needs gc"),
        ("/v1/generate", {"prompt": "A", "gc": "x"}, "^gc x: must be two fractions"),
        ("/v1/generate", {"prompt": "A", "stop_motif": ["("]}, "^stop_motif \\(: "),
        ("/v1/generate", {"prompt": "A", "forbid": ["NNNN"], "stop_codon": "prompt"}, "forbid"),
        (
            "/biology/arc/evo2/generate",
            {"sequence": "A", "num_tokens": 600},
            "^sequence: 601",
        ),
        ("/biology/arc/evo2/generate", {"sequence": "X"}, "^sequence: 'X' at position 1"),
        ("/biology/arc/evo2/generate", {"sequence": "A", "temperature": -1}, "temperature = -1.0"),
        ("/biology/arc/evo2/generate", {"sequence": "A", "num_tokens": 0}, "body.num_tokens"),
        (
            "/biology/arc/evo2/forward",
            {"sequence": "A", "output_layers": ["decoder.layers.99"]},
            "layer 'blocks.99': the model has no such layer",
        ),
        (
            "/biology/arc/evo2/forward",
            {"sequence": "A", "output_layers": ["norm"] * 101},
            "101 layers at once",
        ),
        ("/v1/completions", {"model": "nano", "prompt": "A", "stop": "T"}, "stop: not supported"),
        (
            "/v1/completions",
            {"model": "nano", "prompt": [-1]},
            "^prompt: tokens are the ASCII",
        ),
        ("/v1/completions", {"model": "nano", "prompt": ["A", "X"]}, r"^prompt\[1\]: 'X' at"),
        ("/v1/embeddings", {"model": "nano", "input": [[65], [128]]}, r"^input\[1\]: tokens are"),
        ("/v1/completions", {"model": "nano", "prompt": ["A"] * 300}, "300 sequences at once"),
        (
            "/v1/completions",
            {"model": "nano", "prompt": "A", "max_tokens": 0, "n": 2**40},
            "1,099,511,627,776 choices at once",
        ),
        ("/v1/variants", {"variants": ["1-3-G-" + "A,C," * 6000 + "T"]}, "12,001 alleles at once"),
        ("/v1/variants", {"variants": ["x" * 10_000]}, r"^variants\[0\]: x{487}\.\.\.$"),
        ("/v1/score", {"sequences": ["ACGT"], "strands": "rc"}, "strands"),
        ("/v1/saturate", {"sequence": "ACGT", "windwo": 64}, "windwo"),
        ("/v1/generate", {"prompt": "ACGT", "sead": 1}, "sead"),
        ("/v1/embeddings", {"model": "nano", "input": "A", "dimensions": 8}, "dimensions"),
    ],
)
def test_an_invalid_request_is_refused_in_one_line_that_names_the_field(
    server: Serving, path: str, body: dict[str, Any], message: str
) -> None:
    answer = server.client.post(path, json=body)
    assert answer.status_code == 422
    said = answer.json()["error"]["message"]
    assert "\n" not in said
    assert re.search(message, said), said
    assert names_no_other_option(said)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/completions",
            {"model": "nano", "prompt": "A", "n": 256, "max_tokens": 599, "logprobs": 1},
        ),
        (
            "/v1/completions",
            {
                "model": "nano",
                "prompt": ["A" * 599] * 1024,
                "max_tokens": 0,
                "echo": True,
                "logprobs": 20,
            },
        ),
        (
            "/biology/arc/evo2/forward",
            {"sequence": "A" * 600, "output_layers": ["output_layer"] * 100},
        ),
    ],
)
def test_an_answer_that_would_be_too_large_is_not_computed(
    server: Serving, path: str, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MAX_ANSWER", 2**26)
    answer = server.client.post(path, json=body)
    assert answer.status_code == 413
    assert "MiB, more than 64" in answer.json()["error"]["message"]
    assert server.engine.num_jobs == 0


def test_another_model_is_not_served(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has nano"):
        client.completions.create(model="gpt-4", prompt="ACGT")
    assert [model.id for model in client.models.list()] == ["nano"]


def test_metadata_metrics_and_docs(server: Serving) -> None:
    assert server.client.get("/v1/health/live").status_code == 200
    assert server.client.get("/v1/health/ready").json() == {"status": "ready"}
    found = server.client.get("/v1/metadata").json()
    assert (found["id"], found["reference"], found["max_bases"]) == ("nano", "genome.fa", 600)
    server.post("/v1/score", sequences=["ACGT"])
    metrics = server.client.get("/metrics").text
    assert 'evo2_requests_total{path="/v1/score",status="200"}' in metrics
    assert "evo2_ready 1" in metrics
    paths = server.client.get("/openapi.json").json()["paths"]
    assert {"/v1/score", "/v1/completions", "/biology/arc/evo2/forward"} <= paths.keys()
    assert "swagger" in server.client.get("/docs").text
