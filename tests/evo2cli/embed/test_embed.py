"""`evo2 embed`: vectors are the model's outputs, however the sequence is read."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

from evo2cli.embed.options import EmbedOptions
from evo2cli.embed.run import embed
from evo2cli.errors import UserError
from evo2cli.genome.alphabet import reverse_complement
from evo2cli.genome.fasta import read_records
from stripedhyena2 import StripedHyena2, save, scoring
from stripedhyena2.errors import InputError, NonFiniteError
from stripedhyena2.layers import part_names, stream_layers
from stripedhyena2.streaming import Streaming, stream

[PHIX] = (
    record.sequence for record in read_records(Path(__file__).parents[3] / "examples/phix174.fa")
)
LENGTHS = {"a": 200, "b": 77, "c": 1}
SEQUENCES = {name: PHIX[i * 300 :][:length] for i, (name, length) in enumerate(LENGTHS.items())}
INNER = ["blocks.2.mlp.gate", "blocks.3.mixer", "blocks.2.mixer.operator", "blocks.1.post_norm"]


def write_fasta(path: Path, sequences: dict[str, bytes]) -> Path:
    path.write_bytes(b"".join(b">%s\n%s\n" % (n.encode(), s) for n, s in sequences.items()))
    return path


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return write_fasta(tmp_path / "some.fa", SEQUENCES)


@pytest.fixture
def piece(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bases at a time run through the model."""

    def at_a_time(count: int) -> None:
        monkeypatch.setattr(scoring, "choose_streaming", lambda *_: Streaming(count))
        monkeypatch.setattr("stripedhyena2.pooling._BLOCK", max(1, count // 3))

    return at_a_time


def run(source: Path, checkpoint: str, name: str = "out.safetensors", **options) -> dict:
    """The arrays that are written, read in fp64."""
    output = source.with_name(name)
    options = {"device": "cpu", "dtype": "fp64", "layers": "all", **options}
    embed(EmbedOptions(source=source, model=checkpoint, output=output, **options))
    return load_file(output)


def outputs(model: StripedHyena2, bases: bytes, layers: list[str]) -> dict[str, np.ndarray]:
    """The output of each layer at all positions, in one forward pass in fp64."""
    found = {}

    def hook(name, _module, _inputs, output):
        found[name] = (output[0] if isinstance(output, tuple) else output)[0].numpy()

    twin = StripedHyena2(model.config).double().eval()
    twin.load_state_dict(model.state_dict())
    for name in layers:
        twin.get_submodule(name).register_forward_hook(partial(hook, name))
    with torch.no_grad():
        twin(torch.tensor([list(bases)]))
    return found


def assert_same(found, expected) -> None:
    """Equal within the precision of fp32."""
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


POOLINGS = {"mean": lambda x: x.mean(0), "max": lambda x: x.max(0), "last": lambda x: x[-1]}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_the_pooled_outputs_of_one_forward_pass(
    pooling: str, fasta: Path, checkpoint: str, model: StripedHyena2, piece: Callable[[int], None]
) -> None:
    layers = [*part_names(model.config), *INNER]
    expected = {name: outputs(model, bases, layers) for name, bases in SEQUENCES.items()}
    for count in (150, 31):
        piece(count)
        found = run(fasta, checkpoint, pooling=pooling, layers=",".join(["all", *INNER]))
        assert sorted(found) == sorted(layers)
        for layer, vectors in found.items():
            pooled = [POOLINGS[pooling](expected[name][layer]) for name in SEQUENCES]
            assert_same(vectors, np.stack(pooled))


@pytest.mark.parametrize("strand", ["fwd", "rc"])
def test_a_tag_is_read_but_has_no_vectors(
    strand: str, fasta: Path, checkpoint: str, model: StripedHyena2, piece: Callable[[int], None]
) -> None:
    tag, layers = b"|D__BACTERIA;S__E COLI|", ["blocks.3", "norm"]
    own = write_fasta(fasta.with_name("own.fa"), {n: tag + b for n, b in SEQUENCES.items()})
    asked = {"layers": ",".join(layers), "strand": strand}
    for count in (8192, 31, 7):
        piece(count)
        kept = run(fasta, checkpoint, pooling="none", tag="d__bacteria;s__E coli", **asked)
        pooled = run(own, checkpoint, pooling="mean", **asked)
        for row, (name, bases) in enumerate(SEQUENCES.items()):
            read = bases if strand == "fwd" else reverse_complement(bases)
            expected = outputs(model, tag + read, layers)
            for layer in layers:
                after = expected[layer][len(tag) :]
                assert_same(pooled[layer][row], after.mean(0))
                assert_same(kept[f"{name}/{layer}"], after if strand == "fwd" else after[::-1])


@pytest.mark.parametrize("strand", ["fwd", "rc", "both"])
def test_kept_positions_are_the_outputs_aligned_to_the_forward_strand(
    strand: str, fasta: Path, checkpoint: str, model: StripedHyena2, piece: Callable[[int], None]
) -> None:
    layers = ["blocks.3", "norm", "blocks.2.mlp.gate"]
    asked = {"pooling": "none", "layers": ",".join(layers), "strand": strand}
    for count in (8192, 31):
        piece(count)
        found = run(fasta, checkpoint, **asked)
        assert len(found) == len(SEQUENCES) * len(layers)
        for name, bases in SEQUENCES.items():
            forward = outputs(model, bases, layers)
            reverse = outputs(model, reverse_complement(bases), layers)
            for layer in layers:
                both = forward[layer], reverse[layer][::-1]
                kept = {"fwd": both[0], "rc": both[1], "both": sum(both) / 2}[strand]
                assert_same(found[f"{name}/{layer}"], kept)


def test_the_reverse_strand_of_the_reverse_complement_is_the_forward_strand(
    fasta: Path, checkpoint: str, tmp_path: Path
) -> None:
    turned = {name: reverse_complement(bases) for name, bases in SEQUENCES.items()}
    other = write_fasta(tmp_path / "other.fa", turned)
    for pooling in POOLINGS:
        forward = run(fasta, checkpoint, pooling=pooling)
        reverse = run(other, checkpoint, pooling=pooling, strand="rc")
        both, again = (
            run(file, checkpoint, pooling=pooling, strand="both") for file in (fasta, other)
        )
        for layer, vectors in forward.items():
            np.testing.assert_array_equal(vectors, reverse[layer])
            assert_same(both[layer], again[layer])


def test_a_vector_does_not_depend_on_other_records(fasta: Path, checkpoint: str) -> None:
    whole = run(fasta, checkpoint, dtype="fp32", strand="both")
    turned = write_fasta(fasta.with_name("turned.fa"), dict(reversed(SEQUENCES.items())))
    found = run(turned, checkpoint, dtype="fp32", strand="both")
    alone = write_fasta(fasta.with_name("alone.fa"), {"b": SEQUENCES["b"].lower()})
    for layer, vectors in run(alone, checkpoint, dtype="fp32", strand="both").items():
        assert vectors[0].tobytes() == whole[layer][1].tobytes()
        assert found[layer][::-1].tobytes() == whole[layer].tobytes()


def test_formats_hold_the_same(fasta: Path, checkpoint: str) -> None:
    layers = ["blocks.2.mlp.gate", "norm"]
    found = run(fasta, checkpoint, layers="blocks.2.mlp.l1,norm", strand="both")
    with safe_open(fasta.with_name("out.safetensors"), "np") as file:
        about = file.metadata()
    assert json.loads(about.pop("names")) == list(SEQUENCES)
    assert json.loads(about["layers"]) == layers
    assert [about[key] for key in ("pooling", "strand", "dtype")] == ["mean", "both", "fp64"]
    assert len(about["fingerprint"]) == 12

    for name in ("out.npz", "out.parquet"):
        options = {"layers": ",".join(layers), "strand": "both", "dtype": "fp64"}
        output = fasta.with_name(name)
        embed(EmbedOptions(source=fasta, model=checkpoint, output=output, device="cpu", **options))
    with np.load(fasta.with_name("out.npz")) as file:
        assert sorted(file) == sorted([*layers, "metadata", "names"])
        assert json.loads(str(file["metadata"])) == about
        assert file["names"].tolist() == list(SEQUENCES)
        for layer in layers:
            assert file[layer].dtype == np.float32
            np.testing.assert_array_equal(file[layer], found[layer])
    table = pyarrow.parquet.read_table(fasta.with_name("out.parquet"))
    assert json.loads(table.schema.metadata[b"evo2"]) == about
    assert table["names"].to_pylist() == list(SEQUENCES)
    for layer in layers:
        np.testing.assert_array_equal(np.array(table[layer].to_pylist()), found[layer])
    assert sorted(path.name for path in fasta.parent.iterdir()) == [
        *("out.npz", "out.parquet", "out.safetensors", "some.fa")
    ]


def test_a_table_of_positions_has_a_row_for_each(
    fasta: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evo2cli.embed.store._BATCH", 24 * 64)
    found = run(fasta, checkpoint, layers="3", pooling="none")
    output = fasta.with_name("out.parquet")
    options = {"layers": "3", "pooling": "none", "dtype": "fp64", "device": "cpu"}
    embed(EmbedOptions(source=fasta, model=checkpoint, output=output, **options))
    table = pyarrow.parquet.read_table(output)
    rows = zip(
        *(table[name].to_pylist() for name in ("names", "positions", "blocks.3")), strict=True
    )
    count = 0
    for name, position, vector in rows:
        assert vector == found[f"{name}/blocks.3"][position].tolist()
        count += 1
    assert count == sum(LENGTHS.values())


GFF = """##gff-version 3
a\tx\tgene\t11\t50\t.\t+\t.\tID=g1;Name=first
a\tx\tCDS\t11\t20\t.\t+\t0\tID=c1;Parent=g1
a\tx\tCDS\t41\t50\t.\t+\t0\tID=c1;Parent=g1
a\tx\tgene\t190\t201\t.\t+\t.\tID=too_far
chrb\tx\tgene\t1\t77\t.\t-\t.\tID=g%202
nowhere\tx\tgene\t1\t77\t.\t-\t.\tID=g3
##FASTA
>a
"""


@pytest.mark.parametrize("strand", ["fwd", "rc", "both"])
def test_features_are_pooled_over_their_own_positions(
    strand: str,
    fasta: Path,
    checkpoint: str,
    piece: Callable[[int], None],
    capsys: pytest.CaptureFixture,
) -> None:
    features = fasta.with_name("some.gff3")
    features.write_text(GFF)
    asked = {"layers": "3,blocks.1.mlp", "strand": strand}
    piece(35)
    kept = run(fasta, checkpoint, "kept.safetensors", pooling="none", **asked)
    coding = [*range(10, 20), *range(40, 50)]
    for pooling in ("mean", "last") if strand != "both" else ("mean",):
        found = run(fasta, checkpoint, features=features, pooling=pooling, **asked)
        assert "3 of 5 features entirely within a sequence" in capsys.readouterr().err
        for layer in ("blocks.3", "blocks.1.mlp"):
            a, b = kept[f"a/{layer}"], kept[f"b/{layer}"]
            if pooling == "mean":
                rows = [a[10:50].mean(0), a[coding].mean(0), b.mean(0)]
            elif strand == "fwd":
                rows = [a[49], a[49], b[76]]
            else:
                rows = [a[10], a[10], b[0]]
            np.testing.assert_allclose(found[layer], np.stack(rows), rtol=1e-4, atol=1e-5)
    with safe_open(fasta.with_name("out.safetensors"), "np") as file:
        assert json.loads(file.metadata()["names"]) == ["g1", "c1", "g 2"]
        assert json.loads(file.metadata()["sequences"]) == ["a", "a", "b"]
    chosen = run(fasta, checkpoint, features=features, feature_type="CDS", **asked)
    assert chosen["blocks.3"].shape == (1, 24)


def test_regions_are_the_sequences_they_name(fasta: Path, checkpoint: str) -> None:
    bed = fasta.with_name("some.bed")
    bed.write_text("chra\t10\t90\tone\t0\t-\nb\t0\t77\nb 5 6\n")
    found = run(bed, checkpoint, reference=fasta, layers="-2,norm")
    parts = {"one": SEQUENCES["a"][10:90], "two": SEQUENCES["b"], "three": SEQUENCES["b"][5:6]}
    cut = write_fasta(fasta.with_name("cut.fa"), parts)
    for layer, vectors in run(cut, checkpoint, "cut.safetensors", layers="-2,norm").items():
        assert vectors.tobytes() == found[layer].tobytes()
    with safe_open(fasta.with_name("out.safetensors"), "np") as file:
        assert json.loads(file.metadata()["names"]) == ["one", "b:0-77", "b:5-6"]
    inside = fasta.with_name("inside.bed")
    inside.write_text("a\t10\t90\tall\na\t0\t20\tleft\na\t80\t91\tright\n")
    again = run(bed, checkpoint, reference=fasta, layers="-2", features=inside)
    assert again["blocks.2"].tobytes() == found["blocks.2"][0].tobytes()


def test_an_interrupted_run_resumes(
    fasta: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fasta.with_name("whole.npz")
    options = EmbedOptions(source=fasta, model=checkpoint, output=whole, device="cpu", layers="1,3")
    embed(options)
    seen = []

    def breaking(model, ids_L, *others):
        seen.append(len(ids_L))
        if len(ids_L) == until:
            raise KeyboardInterrupt
        stream_layers(model, ids_L, *others)

    monkeypatch.setattr("stripedhyena2.pooling.stream_layers", breaking)
    broken = replace(options, output=fasta.with_name("broken.npz"))
    vectors = fasta.with_name("broken.npz.vectors")

    def attempt(last: int, **others) -> list[int]:
        nonlocal until
        until = last
        seen.clear()
        if last:
            with pytest.raises(KeyboardInterrupt):
                embed(replace(broken, **others))
            assert not broken.output.exists()
        else:
            embed(replace(broken, **others))
        return list(seen)

    until = 0
    assert attempt(1) == [200, 77, 1]
    assert attempt(1) == [1]
    assert attempt(1, pooling="max") == [200, 77, 1]  # other settings start again
    assert attempt(1) == [200, 77, 1]
    vectors.unlink()
    assert attempt(77) == [200, 77]  # the journal alone is not used
    assert attempt(0) == [77, 1]
    assert broken.output.read_bytes() == whole.read_bytes()
    assert not list(fasta.parent.glob("broken.npz.*"))


def test_smaller_chunks_are_tried_when_memory_runs_out(
    fasta: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.CaptureFixture
) -> None:
    asked = {"layers": "3,norm", "strand": "both"}
    expected = run(fasta, checkpoint, **asked)
    kept = run(fasta, checkpoint, pooling="none", **asked)
    most = 4096

    def scarce(model, ids_BL, streaming):
        for number, step in enumerate(stream(model, ids_BL, streaming)):
            if ids_BL.shape[1] > 1 and streaming.chunk > most and number > 2:
                raise torch.OutOfMemoryError
            yield step

    monkeypatch.setattr("stripedhyena2.layers.stream", scarce)
    for pooling, before in (("mean", expected), ("none", kept)):
        for layer, vectors in run(fasta, checkpoint, pooling=pooling, **asked).items():
            np.testing.assert_array_equal(vectors, before[layer])
        assert "out of memory; retrying with chunks of 4096 bases" in caplog.text
    most = 0
    with pytest.raises(
        InputError, match="200 bases do not fit into the memory of cpu, even in small"
    ):
        run(fasta, checkpoint, **asked)


@pytest.mark.parametrize("pooling", ["mean", "none"])
def test_a_nan_names_its_layer(
    pooling: str, fasta: Path, model: StripedHyena2, tmp_path: Path
) -> None:
    twin = StripedHyena2(model.config).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        twin.blocks[2].mlp.down.weight[3, 3] = torch.nan
    save(twin, tmp_path / "bad", {})
    assert run(fasta, str(tmp_path / "bad"), "good.safetensors", layers="1", pooling=pooling)
    with pytest.raises(NonFiniteError, match=r"a: .*blocks\.3 is.*layer blocks\.2\.mlp\.down"):
        run(fasta, str(tmp_path / "bad"), layers="3", pooling=pooling)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": None}, "give an --output"),
        ({"output": Path("x.txt")}, "suffix .safetensors or .npz or .parquet"),
        ({"source": Path("-")}, "reads its input twice"),
        ({"pooling": "median"}, "must be one of mean, last, max, none"),
        ({"strand": "up"}, "must be one of fwd, rc, both"),
        ({"pooling": "none", "features": Path("x.bed")}, "--features are pooled over"),
        ({"pooling": "none", "probe": Path("x.tsv")}, "one vector per name"),
        ({"plot": Path("x.png")}, "give --probe as well"),
        ({"folds": 1}, "at least 2"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_invalid_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        embed(EmbedOptions(**{"source": Path("x.fa"), "output": Path("x.npz"), **options}))


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"x.fa": ">a\nAC\n>b\n"}, {}, "record 'b' is empty"),
        ({"x.fa": ">a\nAC\n>a\nAC\n"}, {"pooling": "none"}, "2 sequences are named 'a'"),
        ({"x.bed": "a\t0\t9\n"}, {}, "with --reference"),
        (
            {"x.bed": "a\t0\t9\n", "r.fa": ">a\nACGT\n"},
            {},
            "a:0-9: reaches beyond base 4, where a ends",
        ),
        ({"x.bed": "a\t2\t2\tnil\n", "r.fa": ">a\nACGT\n"}, {}, "'nil' has no bases"),
        ({"x.fa": ">a\nAC\n", "f.bed": "b\t0\t1\n"}, {}, r"none of its features \(1\) lies"),
        ({"x.fa": ">a\nAC\n", "f.bed": "a\t0\t1\n"}, {"feature_type": "CDS"}, "no type"),
        ({"x.fa": ">a\nAC\n", "f.gff": "a\t0\tx\n"}, {}, "line 1: .* is not a GFF line"),
        ({"x.fa": ">a\nAC\n"}, {"feature_type": "CDS"}, "needs a GFF"),
    ],
    ids=lambda _: "",
)
def test_invalid_input_is_refused_before_the_work(
    files: dict, options: dict, message: str, tmp_path: Path, checkpoint: str
) -> None:
    paths = {name: tmp_path / name for name in files}
    for name, text in files.items():
        paths[name].write_text(text)
    named = {"r": "reference", "f": "features"}
    options |= {named[n[0]]: path for n, path in paths.items() if n[0] in named}
    with pytest.raises(UserError, match=message):
        run(tmp_path / next(iter(files)), checkpoint, **options)
    assert not list(tmp_path.glob("out*"))
