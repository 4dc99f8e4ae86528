"""`--features`: columns for other programs."""

import json
from pathlib import Path

import pytest
import torch

from evo2cli.errors import UserError
from evo2cli.genome.parquet import read_parquet
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from stripedhyena2 import StripedHyena2
from tests.evo2cli.score.test_windows import letters, variants, write

WINDOW = 40
CONTIG = letters(200)
SNVS = [variant for variant in variants(CONTIG, 12) if 60 < variant[0] < 140]


def run(folder: Path, model: str, suffix: str = ".jsonl", **words) -> Path:
    source = write(folder, CONTIG, SNVS)
    output = folder / f"out{suffix}"
    usual = {"inputs": (source,), "reference": folder / "one.fa", "window": WINDOW}
    score(ScoreOptions(**(usual | {"model": model, "device": "cpu", "output": output} | words)))
    return output


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pooled(model: StripedHyena2, sequence: str, layer: str, span: slice) -> torch.Tensor:
    """The definition: the mean of the outputs of a layer at some positions."""
    found: dict[str, torch.Tensor] = {}
    hook = model.get_submodule(layer).register_forward_hook(
        lambda _module, _inputs, output: found.update(x=output)
    )
    with torch.inference_mode():
        model(torch.tensor([list(sequence.encode())]))
    hook.remove()
    output = found["x"]
    return (output[0] if isinstance(output, tuple) else output)[0, span].double().mean(0)


@pytest.mark.parametrize("pool", ["whole", "center:7"])
def test_the_embedding_is_the_mean_with_alt_minus_that_with_ref(
    tmp_path,
    checkpoint,
    model,
    pool,
):
    words = {"features": "embedding", "pool": pool, "layer": "blocks.2", "strand": "fwd"}
    for row in rows(run(tmp_path, checkpoint, **words)):
        at, ref, alt = row["pos"] - 1, row["ref"], row["alt"]
        windows = []
        for allele, start, end in (
            (ref, row["window_start"], row["window_end"]),
            (alt, row["alt_window_start"], row["alt_window_end"]),
        ):
            sequence = CONTIG[start:at] + allele + CONTIG[at + len(ref) : end]
            first = at - start + (len(allele) - 7) // 2
            span = slice(None) if pool == "whole" else slice(first, first + 7)
            windows.append(pooled(model, sequence, "blocks.2", span))
        expected = (windows[1] - windows[0]).float()
        found = torch.tensor([row[f"embedding_{channel}"] for channel in range(len(expected))])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_scalars_are_those_of_the_delta_in_every_format(
    tmp_path,
    checkpoint,
):
    pytest.importorskip("pyarrow")
    words = {"features": "llr,absllr,embedding"}
    found = rows(run(tmp_path, checkpoint, **words))
    for row in found:
        assert row["llr"] == row["EVO2_DELTA"]
        assert row["absllr"] == abs(row["EVO2_DELTA"])
    types, cells = read_parquet(run(tmp_path, checkpoint, ".parquet", **words))
    assert [dict(zip(types, row, strict=True)) for row in cells] == found


@pytest.mark.slow
def test_two_devices_compute_the_same_features(tmp_path, checkpoint):
    words = {"features": "llr,embedding"}
    found = rows(run(tmp_path, checkpoint, **words))
    assert rows(run(tmp_path, checkpoint, device="cpu,cpu", **words)) == found


def test_an_allele_without_a_score_has_no_features(tmp_path, checkpoint):
    output = run(tmp_path, checkpoint, features="llr,embedding", score="next-base")
    for row in rows(output):
        is_snv = len(row["ref"]) == len(row["alt"]) == 1
        assert (row["llr"] is not None) == (row["embedding_0"] is not None) == is_snv


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"features": "llr,x"}, "must be a comma-separated list of llr, absllr, embedding"),
        ({"features": "llr", "pool": "center:4"}, "need --features embedding"),
        ({"features": "embedding", "pool": "center:0"}, "W must be at least 1"),
        ({"features": "embedding", "pool": "middle"}, "must be whole, or center:W"),
    ],
)
def test_invalid_features_are_refused_in_one_line(tmp_path, checkpoint, words, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, checkpoint, **words)


@pytest.mark.parametrize(
    ("suffix", "features"), [(".vcf", "llr"), (".bcf", "llr"), (".tsv", "embedding")]
)
def test_a_format_that_cannot_hold_them_is_refused(
    tmp_path,
    checkpoint,
    suffix,
    features,
):
    with pytest.raises(UserError, match=r"--features.*x\.parquet or x\.jsonl"):
        run(tmp_path, checkpoint, suffix, features=features)
