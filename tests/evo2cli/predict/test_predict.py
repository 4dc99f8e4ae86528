"""`evo2 predict`: equal numbers whatever the input; lines of variants stay as they are."""

import json
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pysam
import pytest
import torch

from evo2cli.errors import UserError
from evo2cli.finetune.examples import Examples
from evo2cli.finetune.folder import open_tuned, read_description
from evo2cli.finetune.options import FinetuneOptions
from evo2cli.finetune.run import finetune
from evo2cli.journal import _Journal
from evo2cli.options import DType, ModelOptions
from evo2cli.predict.options import PredictOptions
from evo2cli.predict.run import _Fields, _header_lines, predict, predict_table, tiles
from tests.evo2cli.finetune.conftest import Run, base, random_dna, small_table, tune
from tests.ranks import Hold, World

__all__ = ["base", "tune"]  # fixtures

ROOT = Path(__file__).parents[3]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def runs(base: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each task that predictions differ by."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("classify", "tokens", "regress", "pairs"):
        options: dict[str, Any] = {
            "data": small_table(folder / f"{kind}.tsv", kind, count=40),
            "output": folder / kind,
            "model": base,
            "method": "lora" if kind == "tokens" else "head",
            "device": "cpu",
            "split": "random",
            "steps": 3,
            "validations": 1,
            "label_cols": "y1,y2" if kind == "regress" else None,
        }
        finetune(FinetuneOptions(**options))
    return {kind: folder / kind for kind in ("classify", "tokens", "regress", "pairs")}


def rows(text: str) -> list[dict[str, str]]:
    header, *lines = (line.split("\t") for line in text.splitlines())
    return [dict(zip(header, line, strict=True)) for line in lines]


SEQUENCES = ["ACGTTGCAACGGTTACCAGT", "TTGACCAGTACCAGATAC", "GGATCCATTTACGGATCATC"]


def test_a_fasta_and_a_table_give_what_python_gives(
    runs: dict[str, Path], tmp_path: Path, command_line: Command
) -> None:
    fasta, table = tmp_path / "x.fa", tmp_path / "x.tsv"
    fasta.write_text("".join(f">s{i}\n{s.lower()}\n" for i, s in enumerate(SEQUENCES)))
    table.write_text("name\tsequence\n" + "".join(f"s{i}\t{s}\n" for i, s in enumerate(SEQUENCES)))
    expected = predict_table(
        runs["classify"], Examples([str(i) for i in range(3)], SEQUENCES), device="cpu"
    )
    outputs = []
    for path in (fasta, table):
        code, out, err = command_line("predict", str(runs["classify"]), str(path))
        assert code == 0, err
        outputs.append(out)
        found = rows(out)
        assert [row["name"] for row in found] == ["s0", "s1", "s2"]
        values = [[float(row["p_high"]), float(row["p_low"])] for row in found]
        np.testing.assert_allclose(values, expected, atol=2e-6)
        assert [row["prediction"] for row in found] == [
            ("high", "low")[int(row.argmax())] for row in np.array(values)
        ]
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("kind", ["classify", "tokens", "regress", "pairs"])
def test_an_output_does_not_depend_on_what_is_read_with_it(
    runs: dict[str, Path], kind: str
) -> None:
    random = np.random.default_rng(3)
    lengths = [*random.integers(15, 300, 20).tolist(), 60, 60, 61]
    letters = [bytes(random.choice(list(b"ACGT"), length).tolist()) for length in lengths]
    examples = [(each, each[::-1]) if kind == "pairs" else (each,) for each in letters]
    tuned = open_tuned(runs[kind], ModelOptions(device="cpu"))
    outputs = tuned.outputs(examples)
    turned = [*tuned.outputs(examples[::-1])][::-1]
    for example, output, other in zip(examples, outputs, turned, strict=True):
        [alone] = tuned.outputs([example])
        assert torch.equal(output, alone)
        assert torch.equal(output, other)


def test_numbers_have_their_units(
    runs: dict[str, Path], tmp_path: Path, command_line: Command
) -> None:
    (tmp_path / "x.fa").write_text(f">s\n{SEQUENCES[0]}\n")
    code, out, err = command_line("predict", str(runs["regress"]), str(tmp_path / "x.fa"))
    assert code == 0, err
    [row] = rows(out)
    assert 3 < float(row["y1"]) < 7
    assert -3.5 < float(row["y2"]) < -1.5


def test_a_precision_that_does_not_exist_is_said(runs: dict[str, Path]) -> None:
    with pytest.raises(UserError, match=r"^--dtype int4: must be one of auto, fp8"):
        predict_table(runs["classify"], Examples(["s"], ["ACGT"]), dtype="int4")


def test_regions_are_sequences_of_the_genome_on_their_strand(
    runs: dict[str, Path], tmp_path: Path, command_line: Command
) -> None:
    genome, bed, fasta = tmp_path / "g.fa", tmp_path / "x.bed", tmp_path / "x.fa"
    bases = "".join(SEQUENCES)
    genome.write_text(f">c\n{bases}\n")
    bed.write_text("c\t3\t20\tone\t0\t+\nc\t10\t30\ttwo\t0\t-\n")
    reverse = bases[10:30].translate(str.maketrans("ACGT", "TGCA"))[::-1]
    fasta.write_text(f">one\n{bases[3:20]}\n>two\n{reverse}\n")
    gff = tmp_path / "x.gff3"
    gff.write_text("c\t.\tx\t4\t20\t.\t+\t.\tID=one\nc\t.\tx\t11\t30\t.\t-\t.\tID=two\n")
    run = str(runs["classify"])
    _, of_sequences, _ = command_line("predict", run, str(fasta))
    for regions in (bed, gff):
        _, of_regions, err = command_line("predict", run, str(regions), "-R", str(genome))
        assert of_regions == of_sequences, err


def test_variants_keep_their_lines(
    runs: dict[str, Path], tmp_path: Path, command_line: Command
) -> None:
    vcf, genome = (ROOT / "examples" / name for name in ("phix174.vcf", "phix174.fa"))
    output = tmp_path / "out.vcf"
    arguments = ("predict", str(runs["classify"]), str(vcf), "-R", str(genome), "-O", str(output))
    code, _, err = command_line(*arguments)
    assert code == 0, err
    before, after = (file.read_bytes().splitlines() for file in (vcf, output))
    kept = [line for line in after if not line.startswith((b"##evo2", b"##INFO=<ID=EVO2"))]
    assert len(kept) == len(before)
    for old, new in zip(before, kept, strict=True):
        if old.startswith(b"#"):
            assert old == new
            continue
        old_cells, new_cells = old.split(b"\t"), new.split(b"\t")
        assert [*old_cells[:7], *old_cells[8:]] == [*new_cells[:7], *new_cells[8:]]
        assert new_cells[7].startswith(b"" if old_cells[7] == b"." else old_cells[7] + b";")
    info = dict(
        entry.split("=") for entry in kept[-1].decode().split("\t")[7].split(";") if "EVO2" in entry
    )
    ref, alt, difference = (float(info[f"EVO2_high_{kind}"]) for kind in ("REF", "ALT", "DIFF"))
    assert difference == pytest.approx(alt - ref, abs=3e-6)
    assert info["EVO2_PREDICT_STATUS"] in ("OK", "EDGE")


def test_scores_and_predictions_stand_side_by_side(
    runs: dict[str, Path], tmp_path: Path, command_line: Command
) -> None:
    genome, output = ROOT / "examples" / "phix174.fa", tmp_path / "out.vcf"
    scored = tmp_path / "scored.vcf"
    text = (ROOT / "examples" / "phix174.vcf").read_text()
    line = '##INFO=<ID=EVO2_DELTA,Number=A,Type=Float,Description="">\n'
    text = text.replace("#CHROM", f"{line}#CHROM").replace("GENE=", "EVO2_DELTA=1;GENE=")
    scored.write_text(text)
    words = ["predict", str(runs["classify"]), "-R", str(genome)]
    code, _, err = command_line(*words, str(scored), "-O", str(output))
    assert code == 0, err
    both = [row for row in output.read_text().splitlines() if not row.startswith("#")]
    assert all("EVO2_PREDICT_STATUS=" in row for row in both)
    assert sum("EVO2_DELTA=1;" in row for row in both) == text.count("EVO2_DELTA=1;")
    code, _, err = command_line(*words, str(output))
    assert code == 2
    assert "has EVO2_high_REF of an earlier run; give another --name to add" in err


def info_of(vcf: Path) -> list[dict[str, str]]:
    """The INFO of each record, by key."""
    lines = [line for line in vcf.read_text().splitlines() if not line.startswith("#")]
    entries = [line.split("\t")[7].split(";") for line in lines]
    return [dict(entry.split("=", 1) for entry in each if "=" in entry) for each in entries]


def test_one_vcf_holds_predictions_of_several_models(
    runs: dict[str, Path], tmp_path: Path, tune: Run, command_line: Command
) -> None:
    """Also of models with the same classes; each has the values that it has alone."""
    tune(small_table(tmp_path / "x.tsv", "classify", count=40), method="head", seed=5)
    genome = ROOT / "examples" / "phix174.fa"
    first, both, alone = (tmp_path / f"{name}.vcf" for name in ("first", "both", "alone"))
    steps: list[tuple[Path, Path, Path, list[str]]] = [
        (runs["classify"], ROOT / "examples" / "phix174.vcf", first, []),
        (tmp_path / "run", ROOT / "examples" / "phix174.vcf", alone, []),
        (tmp_path / "run", first, both, ["--name", "brain.2"]),
    ]
    for run, source, output, words in steps:
        words += ["-R", str(genome), "-O", str(output)]
        code, _, err = command_line("predict", str(run), str(source), *words)
        assert code == 0, err
    for one, other, found in zip(info_of(first), info_of(alone), info_of(both), strict=True):
        added = {
            key.replace("EVO2_", "EVO2_brain.2_", 1): value
            for key, value in other.items()
            if key.startswith("EVO2_")
        }
        assert found == {**one, **added}
    with pysam.VariantFile(str(both)) as file:
        keys = {key for key in file.header.info if key.startswith("EVO2_brain.2_")}
    assert keys == {key for info in info_of(both) for key in info if "brain" in key}
    assert b"##evo2Predict=run --name brain.2 (classify on " in both.read_bytes()
    code, _, err = command_line("predict", str(run), str(both), "-R", str(genome), *words[:2])
    assert code == 2
    assert "has EVO2_brain.2_high_REF of an earlier run; give another --name" in err


def test_classes_whose_keys_would_be_the_same_are_numbered(runs: dict[str, Path]) -> None:
    description = read_description(runs["classify"] / "final")
    assert description.reading is not None
    labels = replace(description.labels, classes=("CD4+", "CD4-"))
    keys = _Fields.of(replace(description, labels=labels), description.reading, None)
    assert keys.values["with REF"] == ["EVO2_CD4__1_REF", "EVO2_CD4__2_REF"]


def test_the_header_holds_any_name_of_a_class(runs: dict[str, Path], tmp_path: Path) -> None:
    description = read_description(runs["classify"] / "final")
    assert description.reading is not None
    classes = ('say "hi"', "back\\slash")
    description = replace(description, labels=replace(description.labels, classes=classes))
    options = PredictOptions(run=runs["classify"], source=Path("x.vcf"))
    fields = _Fields.of(description, description.reading, None)
    columns = "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
    lines = ["##fileformat=VCFv4.3", *_header_lines(options, description, fields), columns, ""]
    (tmp_path / "x.vcf").write_text("\n".join(lines))
    with pysam.VariantFile(str(tmp_path / "x.vcf")) as file:
        keys = [key for keys in fields.values.values() for key in keys]
        assert {*file.header.info} == {*keys, fields.status}


def test_a_pair_is_cut_if_one_of_it_is(
    runs: dict[str, Path], tmp_path: Path, command_line: Command
) -> None:
    length, table = read_description(runs["pairs"] / "final").length, tmp_path / "x.tsv"
    pairs = [(length, length), (length, length + 1), (length + 1, length)]
    rows = [f"{'A' * first}\t{'C' * second}\n" for first, second in pairs]
    table.write_text(f"sequence_a\tsequence_b\n{''.join(rows)}")
    code, _, err = command_line("predict", str(runs["pairs"]), str(table))
    assert code == 0, err
    assert "2 of 3 sequences: longer than" in err


def test_variants_of_another_genome_end_with_3(
    runs: dict[str, Path], tmp_path: Path, command_line: Command
) -> None:
    (tmp_path / "x.fa").write_text(">other\nACGTACGTAA\n")
    output = tmp_path / "out.vcf.gz"
    words = ["predict", str(runs["classify"]), str(ROOT / "examples" / "phix174.vcf")]
    code, _, err = command_line(*words, "-R", str(tmp_path / "x.fa"), "-O", str(output))
    assert code == 3
    assert "CONTIG_MISSING       39" in err
    assert err.endswith(
        "no allele could be predicted: the genome has no contig NC_001422.1; it has other\n"
    )
    assert output.with_name("out.vcf.gz.tbi").is_file()


def test_pairs_predict_variants_once(runs: dict[str, Path], command_line: Command) -> None:
    vcf, genome = (ROOT / "examples" / name for name in ("phix174.vcf", "phix174.fa"))
    code, out, err = command_line("predict", str(runs["pairs"]), str(vcf), "-R", str(genome))
    assert code == 0, err
    assert "EVO2_same=" in out
    assert "EVO2_same_REF" not in out


def test_tracks_have_the_values_of_tables(
    runs: dict[str, Path], tmp_path: Path, command_line: Command
) -> None:
    fasta, track = tmp_path / "x.fa", tmp_path / "x.bedgraph"
    long = "".join(SEQUENCES)  # longer than the windows of the training
    fasta.write_text(f">a\n{SEQUENCES[0]}\n>b\n{long}\n")
    run = str(runs["tokens"])
    code, out, err = command_line("predict", run, str(fasta))
    assert code == 0, err
    table = rows(out)
    assert "".join(row["base"] for row in table) == SEQUENCES[0] + long
    assert command_line("predict", run, str(fasta), "-O", str(track), "--class", "1")[0] == 0
    lines = [line.split("\t") for line in track.read_text().splitlines()]
    assert [(c, int(s) + 1) for c, s, *_ in lines] == [
        (row["name"], int(row["position"])) for row in table
    ]
    assert [line[3] for line in lines] == [row["p_1"] for row in table]
    pytest.importorskip("pyBigWig")
    code, _, err = command_line("predict", run, str(fasta), "-O", str(tmp_path / "x.bw"))
    assert code == 0, err


@pytest.fixture
def sequences(tmp_path: Path) -> Path:
    """A FASTA; the last of its sequences are longer than those of the training."""
    random = np.random.default_rng(5)
    records = [f">s{index}\n{random_dna(random, 12 + 6 * index)}\n" for index in range(8)]
    (tmp_path / "x.fa").write_text("".join(records))
    return tmp_path / "x.fa"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("classify", "x.tsv.gz"),
        ("tokens", "x.tsv"),
        ("tokens", "x.bedgraph"),
        ("tokens", "x.bw"),
        ("regress", "x.vcf.gz"),
        ("pairs", "x.vcf"),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(
    runs: dict[str, Path], sequences: Path, command_line: Command, kind: str, name: str
) -> None:
    if name == "x.bw":
        pytest.importorskip("pyBigWig")
    words = ["predict", str(runs[kind]), str(sequences), "--device", "cpu"]
    if ".vcf" in name:
        examples = ROOT / "examples"
        words[2:3] = [str(examples / "phix174.vcf"), "-R", str(examples / "phix174.fa")]
    folder = sequences.parent / "output"
    folder.mkdir()
    output, whole = folder / name, sequences.with_name(f"whole-{name}")
    code, _, err = command_line(*words, "-O", str(whole))
    assert code == 0, err
    words += ["-O", str(output)]
    killed = World(1, sequences.parent, "killed", words, Hold(_Journal, "recall", call=6))
    assert killed.end_held(signal.SIGKILL) == [-signal.SIGKILL]
    assert not output.exists()
    code, _, err = command_line(*words)
    assert code == 0, err
    assert f"resumed after 6 results stored in {output}.journal" in err
    assert output.read_bytes() == whole.read_bytes()
    assert {file.name for file in folder.iterdir()} <= {name, f"{name}.tbi"}


def test_results_of_another_model_precision_or_sequence_are_not_used_again(
    runs: dict[str, Path],
    sequences: Path,
    tune: Run,
    capsys: pytest.CaptureFixture[str],
    stopped_after: Callable[[int], AbstractContextManager[None]],
) -> None:
    output, straight = sequences.with_name("x.tsv"), sequences.with_name("straight.tsv")
    table = sequences.with_name("table.tsv")
    tune(small_table(table, "classify", count=40), method="head", seed=5)
    before = {"run": runs["classify"], "source": sequences, "output": output, "device": "cpu"}
    changed = sequences.with_name("changed.fa")
    changed.write_text(sequences.read_text().replace(">s2\n", ">s2\nACG"))
    for others, num_kept in (
        ({"run": sequences.with_name("run")}, 0),
        ({"dtype": DType.FP64}, 0),
        ({"source": changed}, 2),
        ({}, 5),
    ):
        now: dict[str, Any] = {**before, **others}
        predict(PredictOptions(**{**now, "output": straight}))
        with stopped_after(5):
            predict(PredictOptions(**before))
        capsys.readouterr()
        predict(PredictOptions(**now))
        assert output.read_bytes() == straight.read_bytes()
        said = capsys.readouterr().err
        assert ("resumed after" in said) == bool(num_kept)
        assert f"resumed after {num_kept} results" in said or not num_kept
        assert not output.with_name("x.tsv.journal").exists()


@pytest.mark.parametrize(("length", "window"), [(5, 8), (8, 8), (9, 8), (30, 8), (31, 7), (3, 1)])
def test_tiles_cover_every_base_once(length: int, window: int) -> None:
    found = tiles(length, window)
    taken = [base for start, end, first, last in found for base in range(first, last)]
    assert taken == list(range(length))
    assert all(start <= first <= last <= end <= length for start, end, first, last in found)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("classify", ["x.fa", "-O", "x.bw"], "a track needs a value for each base"),
        ("classify", ["x.vcf"], "give the genome of the variants"),
        ("classify", ["x.bed"], "give the genome of these regions"),
        ("classify", ["bad.fa"], "not a nucleotide"),
        ("classify", ["bad.vcf", "-R", "x.fa"], "line 3"),
        ("tokens", ["x.vcf", "-R", "x.fa"], "no prediction for a variant"),
        ("tokens", ["x.fa", "-O", "x.bedgraph", "--class", "7"], "--class 7: must be one of 0, 1"),
        ("pairs", ["x.fa"], "trained on pairs"),
        ("pairs", ["x.bed", "-R", "x.fa"], "trained on pairs"),
        ("pairs", ["x.tsv"], "trained on pairs"),
        ("classify", ["pairs.tsv"], "trained on single sequences"),
        ("classify", ["x.fa", "-O", "x.docx"], "needs one of the suffixes"),
        ("classify", ["x.fa", "--name", "b"], "--name b: only for a VCF, and x.fa is not one"),
        ("classify", ["x.fa", "-O", "x.vcf"], "-output x.vcf: only for a VCF, and x.fa is not"),
        ("tokens", ["twice.fa", "-O", "x.bedgraph"], "twice.fa: sequences share a name"),
        ("classify", ["x.vcf", "--name", "b;c"], "--name b;c: may have letters, digits, _ and ."),
    ],
)
def test_what_cannot_be_predicted_is_said(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command_line: Command,
    kind: str,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.fa").write_text(">c\nACGTACGTAA\n")
    Path("twice.fa").write_text(">c\nACGTACGTAA\n>c\nACG\n")
    Path("x.bed").write_text("c\t1\t5\n")
    Path("x.tsv").write_text("sequence\nACGTACGTAA\n")
    Path("pairs.tsv").write_text("sequence_a\tsequence_b\nACGTACGTAA\tACG\n")
    header = "##fileformat=VCFv4.3\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
    Path("x.vcf").write_text(f"{header}c\t3\t.\tG\tA\t.\t.\t.\n")
    Path("bad.vcf").write_text(f"{header}c\tthree\t.\tG\tA\t.\t.\t.\n")
    Path("bad.fa").write_text(">c\nAC!T\n")
    files = {*Path().iterdir()}
    code, out, err = command_line("predict", str(runs[kind]), *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert {*Path().iterdir()} == files


def test_a_folder_without_a_run_is_said(tmp_path: Path, command_line: Command) -> None:
    code, _, err = command_line("predict", str(tmp_path), "x.fa")
    assert code == 2
    assert "is not a folder written by evo2 finetune" in err


def test_another_base_is_refused(
    runs: dict[str, Path], tmp_path: Path, command_line: Command
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs["classify"] / "final", copy)
    facts = json.loads((copy / "finetune.json").read_text())
    (copy / "finetune.json").write_text(json.dumps({**facts, "base": "nano"}))
    (tmp_path / "x.fa").write_text(">c\nACGTACGTAA\n")
    code, _, err = command_line("predict", str(copy), str(tmp_path / "x.fa"))
    assert code == 2
    assert "belongs to the model nano (fingerprint" in err


@pytest.mark.parametrize(
    ("kind", "sequences", "message"),
    [
        ("pairs", "sequence\tlabel\nACGT\tsame\nACG\tother\n", "trained on pairs"),
        ("classify", "sequence_a\tsequence_b\tlabel\nACGT\tACG\thigh\n", "single sequences"),
    ],
)
def test_eval_task_refuses_pairs_for_single_sequences_and_the_reverse(
    runs: dict[str, Path],
    tmp_path: Path,
    command_line: Command,
    kind: str,
    sequences: str,
    message: str,
) -> None:
    (tmp_path / "x.tsv").write_text(sequences)
    words = ["eval", "task", str(runs[kind]), str(tmp_path / "x.tsv"), "--device", "cpu"]
    code, _, err = command_line(*words)
    assert code == 2
    assert message in err


def test_eval_task_repeats_the_report(tmp_path: Path, tune: Run, command_line: Command) -> None:
    table = small_table(tmp_path / "x.tsv", "classify")
    lines = table.read_text().splitlines()
    parts = {"train": lines[1:41], "valid": lines[41:51], "test": lines[51:]}
    for part, own in parts.items():
        (tmp_path / f"{part}.tsv").write_text("\n".join([lines[0], *own]) + "\n")
    paths = {part: tmp_path / f"{part}.tsv" for part in parts}
    report = tune(paths["train"], valid=paths["valid"], test=paths["test"], method="lora")
    code, out, err = command_line(
        "eval", "task", str(tmp_path / "run"), str(paths["test"]), "--json", "--device", "cpu"
    )
    assert code == 0, err
    found = {row["metric"]: row["value"] for row in json.loads(out)["rows"]}
    for name, (value, *_) in report["results"]["model"].items():
        assert found[name] == pytest.approx(value, abs=1e-4), name
