"""`evo2 score --device a,b`: the bytes of one device, whatever was there before."""

import os
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from evo2cli import devices as score_devices
from evo2cli.devices import DeviceError, Part, pick_devices
from evo2cli.errors import UserError
from evo2cli.score.input import read_variants
from evo2cli.score.options import ScoreOptions
from evo2cli.score.run import score
from evo2cli.score.variants import score_part
from stripedhyena2 import StripedHyena2
from stripedhyena2.progress import Progress
from tests.evo2cli.score.test_windows import letters, variants, write

GENOME = letters(400)


def run(source: Path, checkpoint: str, name: str, device: str = "cpu,cpu", **options) -> Path:
    usual = {"window": 64, "reference": source.with_name("one.fa")}
    score(
        ScoreOptions(
            inputs=(source,),
            model=checkpoint,
            output=source.with_name(name),
            device=device,
            **(usual | options),
        )
    )
    return source.with_name(name)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path, GENOME, variants(GENOME, 9)[::-1])


class KilledError(Exception):
    """In place of a signal."""


@pytest.mark.slow
def test_two_devices_resume_after_a_kill_and_write_what_one_does(
    source: Path, checkpoint: str, capsys
) -> None:
    whole = run(source, checkpoint, "one.parquet", "cpu").read_bytes()
    done = 0

    def advance(amount: float) -> None:
        nonlocal done
        done += amount
        if done == 3:
            raise KilledError

    journal = source.with_name("two.parquet.1-of-2.journal")
    options = ScoreOptions(
        inputs=(source,), model=checkpoint, reference=source.with_name("one.fa"), window=64
    )
    with pytest.raises(KilledError):
        score_part(partial(read_variants, options), options, Part(journal, 0, 4), advance)
    assert len(journal.read_text().splitlines()) == 4
    assert run(source, checkpoint, "two.parquet").read_bytes() == whole
    assert not list(source.parent.glob("*journal"))
    assert capsys.readouterr().err.count("insertions and deletions are not") == 2


def test_sequences_are_shared_out_by_their_bases(
    tmp_path: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch, capsysbinary
) -> None:
    """To a file, and to stdout, for which journals are kept elsewhere."""
    source = tmp_path / "some.fa"
    lengths = [150, 0, 1, 40, 40, 40, 30]
    source.write_text("".join(f">{i}\n{GENOME[i : i + n]}\n" for i, n in enumerate(lengths)))
    options = ScoreOptions(inputs=(source,), model=checkpoint, device="cpu")
    score(options)
    whole = capsysbinary.readouterr().out
    seen = []

    def one_after_the_other(jobs, compute, _amount) -> None:
        for own, part in jobs:
            seen.append((own.device, part.first, part.end))
            compute(own, part, lambda _: None)

    monkeypatch.setattr(score_devices, "_run", one_after_the_other)
    score(replace(options, device="cpu:0,cpu"))
    assert capsysbinary.readouterr().out == whole
    score(replace(options, device="cpu,cpu,cpu,cpu,cpu", output=tmp_path / "x.tsv"))
    assert (tmp_path / "x.tsv").read_bytes() == whole
    assert seen[:2] == [("cpu:0", 0, 3), ("cpu", 3, 7)]
    assert [first for _, first, _ in seen[2:]] == [0, 1, 4, 6]  # the second has none
    assert sorted(path.name for path in tmp_path.iterdir()) == ["some.fa", "x.tsv"]


def fail(options: ScoreOptions, part: Part, advance: Progress) -> None:
    """Of two parts one goes on until it is ended, the other cannot."""
    while part.first == 0:
        advance(0)
    raise UserError(f"{options.source}: is not there")


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run_by_one_line(tmp_path: Path) -> None:
    options = ScoreOptions(inputs=("x",), output=tmp_path / "y.tsv")
    with (
        pytest.raises(DeviceError, match=r"^--device cpu: x: is not there$"),
        score_devices.open_parts(options, ["cpu", "cpu"], [0, 1, 2], fail, (2, "records")),
    ):
        pytest.fail("is not reached")


def die(_options: ScoreOptions, _part: Part, _advance: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_is_named(tmp_path: Path) -> None:
    options = ScoreOptions(inputs=("x",), output=tmp_path / "y.tsv", device="cuda:1")
    told = r"^--device cuda:1: its process was ended by SIGKILL; the same command resumes from"
    with pytest.raises(DeviceError, match=told):
        score_devices._run([(options, Part(None, 0, 1))], die, (1, "records"))


def test_devices_are_counted_and_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_devices("auto") == ["auto"]
    assert pick_devices("cuda:0,cuda:3") == ["cuda:0", "cuda:3"]
    with pytest.raises(UserError, match=r"--device cpu,cuda:0: .* of one kind"):
        pick_devices("cpu,cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert pick_devices("all") == ["cuda:0", "cuda:1", "cuda:2"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="there is no GPU here"):
        pick_devices("all")


def test_memory_that_runs_out_is_one_line_and_leaves_nothing_half_written(
    source: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = (
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79 GiB of "
        "which 1 GiB is free. Process 7 has"
    )
    for error, detail in (
        (torch.OutOfMemoryError(told), r"20\.00 GiB\. GPU 0 has .* is free"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
         "tried to allocate 8 bytes"),
    ):  # fmt: skip

        def exhausted(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(StripedHyena2, "unembed", exhausted)
        with pytest.raises(UserError, match=rf"^--window 64 .*{detail}.*--window 32") as caught:
            run(source, checkpoint, "out.vcf", "cpu")
        assert caught.value.exit_code == 2
        assert not source.with_name("out.vcf").exists()
        assert not source.with_name("out.vcf.part").exists()


def test_other_errors_of_torch_stay_what_they_are(
    source: Path, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(StripedHyena2, "unembed", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        run(source, checkpoint, "out.vcf", "cpu")
