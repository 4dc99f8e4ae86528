"""`evo2 doctor`: a sound machine passes, a wrong kernel does not, no table promises too much."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from evo2cli.app import app
from evo2cli.doctor import checks as doctor_checks
from evo2cli.doctor import run as doctor_run
from evo2cli.doctor.checks import Outcome, check_model, checks
from evo2cli.doctor.losses import measure_losses, read_prompts
from evo2cli.doctor.models import describe_models, inference_bytes, published_name, trust
from evo2cli.doctor.options import DoctorOptions
from evo2cli.doctor.page import doctor_page
from evo2cli.doctor.run import require_health
from evo2cli.errors import UntrustedNumericsError, UserError
from hyenakernels import HyenaPast, ModalFilters
from stripedhyena2 import Cache, StripedHyena2
from stripedhyena2.checkpoint.published import PUBLISHED, Precision, published_config
from stripedhyena2.decoding import Decoder
from stripedhyena2.scoring import sequence_logprob

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PROMPTS = ["ACGTTGCA" * 6, "GATTACA" * 9]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    lines = ["Name,Sequence", *(f"{index},{prompt}" for index, prompt in enumerate(PROMPTS))]
    (tmp_path / "prompts.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "prompts.csv"


def test_a_sound_machine_passes(checkpoint: str, prompts: Path) -> None:
    arguments = ["doctor", "--model", checkpoint, "--prompts", str(prompts), "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert all(check["passed"] for check in found["checks"])
    names = " ".join(check["name"] for check in found["checks"])
    for tested in (
        "Hyena-SE",
        "Hyena-MR",
        "Hyena-LI",
        "norm",
        "attention",
        "FP8 projection",
        "FP8 products",
        "FP8, one token",
        "in chunks",
        "base by base",
        "tiny: ",
    ):
        assert tested in names
    assert [model["name"] for model in found["models"]] == list(PUBLISHED)
    assert found["losses"]["passed"] is None
    page = doctor_page(found)
    assert page is not None


def test_a_wrong_kernel_is_code_4(monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor_checks.hyena_modal

    def wrong(z: Tensor, filters: ModalFilters) -> tuple[Tensor, HyenaPast]:
        """Loses a mode where it runs in fp32."""
        poles = filters.log_poles_DS
        if z.dtype == torch.float32:
            poles = torch.cat([poles[:, :-1], poles[:, :1]], dim=1)
        return right(z, filters._replace(log_poles_DS=poles))

    monkeypatch.setattr(doctor_checks, "hyena_modal", wrong)
    result = CliRunner().invoke(app, ["doctor", "--device", "cpu"])
    assert "FAILED" in result.stdout
    error = result.exception
    assert isinstance(error, UntrustedNumericsError)
    assert error.exit_code == 4
    assert "1 of 11 self-tests failed: Hyena-LI, fp32 has an error of" in str(error)


@pytest.mark.parametrize("index", range(8), ids=[check.name for check in checks()])
def test_a_test_that_notices_nothing_fails(index: int) -> None:
    check = list(checks())[index]
    assert check.outcome(CPU, torch.float32).passed
    blind = replace(check, spoil=lambda *inputs: inputs)
    assert not blind.outcome(CPU, torch.float32).passed
    with pytest.raises(UntrustedNumericsError, match="does not detect"):
        require_health({"checks": [{**vars(blind.outcome(CPU, torch.float32)), "passed": False}]})


def test_a_gpu_without_fp8_is_told_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor_run, "runs_float8", lambda _: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA A100")
    monkeypatch.setattr(doctor_run, "load", lambda *_, **__: None)
    monkeypatch.setattr(doctor_run, "check_model", lambda *_: iter(()))
    monkeypatch.setattr(doctor_checks.Check, "outcome", lambda self, *_: self.name)
    tested = doctor_run._check_device(CUDA)
    assert "FP8 projection" in tested
    assert not {"FP8 products", "FP8, one token"} & set(map(str, tested))
    line = "FP8 products are not tested: NVIDIA A100 does not support them, nor --dtype fp8"
    assert line in " ".join(capsys.readouterr().err.split())


def test_nan_is_no_success() -> None:
    nan = float("nan")
    assert not Outcome("test", "wrong", nan, 1.0, 1e-2).passed
    assert not Outcome("test", "wrong", 1e-3, nan, 1e-2).passed


def test_a_model_that_forgets_at_a_cut_is_noticed(
    model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(outcome.passed for outcome in check_model(model))
    forward = StripedHyena2.forward

    def forgetful(self: StripedHyena2, ids: Tensor, cache: Cache | None = None) -> Tensor:
        fresh = self.new_cache(1)
        logits = forward(self, ids, fresh)
        if cache is not None:
            cache.pasts, cache.position = fresh.pasts, fresh.position
        return logits

    monkeypatch.setattr(StripedHyena2, "forward", forgetful)
    assert [outcome.passed for outcome in check_model(model)] == [False, True]
    monkeypatch.undo()
    monkeypatch.setattr(Decoder, "place", lambda *_: None)
    assert [outcome.passed for outcome in check_model(model)] == [True, False]


def test_a_loss_is_the_mean_cross_entropy(model: StripedHyena2, prompts: Path) -> None:
    assert read_prompts(prompts) == PROMPTS
    expected = sum(-sequence_logprob(model, p.encode()) / (len(p) - 1) for p in PROMPTS) / len(
        PROMPTS
    )
    found = measure_losses(model, PROMPTS, None, chunk=20)  # prompts are longer than a chunk
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["loss_as_published"] == pytest.approx(expected, rel=2**-8)
    assert (found["published"], found["passed"]) == (None, None)


@pytest.mark.parametrize(("shift", "passed"), [(0.0, True), (2e-3, False), (-2e-3, False)])
def test_a_published_loss_is_held_on_both_sides(
    model: StripedHyena2, shift: float, *, passed: bool
) -> None:
    loss = measure_losses(model, PROMPTS, None)["loss_as_published"]
    found = measure_losses(model, PROMPTS, loss + shift)
    assert found["passed"] is passed
    result = {"checks": [], "losses": found, "model": {"name": "evo2_7b"}}
    if passed:
        require_health(result)
    else:
        with pytest.raises(UntrustedNumericsError, match="does not reproduce"):
            require_health(result)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no line"),
        ("Sequence\n", "has no line"),
        ("Sequence\nA\n", "line 2 has no sequence"),
        ("Name,Sequence\nx\n", "line 2 has no sequence"),
        ("Sequence\nACGÜ\n", "line 2 has no sequence"),
        (None, "cannot be read as CSV"),
    ],
)
def test_prompts_that_are_none_are_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "prompts.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"prompts.csv: .*{message}"):
        read_prompts(tmp_path / "prompts.csv")


def test_prompts_need_a_model(prompts: Path) -> None:
    with pytest.raises(UserError, match="give --model"):
        DoctorOptions(prompts=prompts)


@pytest.mark.parametrize(
    ("fp8", "hopper", "expected"),
    [
        (False, False, {"bf16": "yes", "fp8": "unproven", "fp8, Hopper": "no"}),
        (True, False, {"bf16": "yes", "fp8": "unproven", "fp8, Hopper": "no"}),
        (True, True, {"bf16": "yes", "fp8": "unproven", "fp8, Hopper": "unproven"}),
    ],
    ids=["none", "fp8", "hopper"],
)
def test_trust_is_by_hardware(expected: dict[str, str], *, fp8: bool, hopper: bool) -> None:
    assert {str(need): trust(need, float8=fp8, hopper=hopper)[0] for need in Precision} == expected


def test_memory_is_weights_and_what_a_chunk_takes() -> None:
    config = published_config("evo2_7b_base")
    parameters, projections = 6_481_059_584, 27 * 3 * 4096**2
    assert 1.0 < inference_bytes(config, CPU, float8=False) / (4 * parameters) < 1.2
    wide, narrow = (inference_bytes(config, CUDA, float8=float8) for float8 in (False, True))
    assert 1.0 < wide / (2 * parameters) < 1.3
    assert wide - narrow == pytest.approx(projections, rel=0.05)


def test_what_does_not_fit_says_why() -> None:
    found = describe_models(CPU, memory=100 * 10**9, free_disk=10**10)
    rows = {row["name"]: row for row in found}
    assert rows["evo2_1b_base"]["fits"]
    assert rows["evo2_7b"]["obstacle"] == "14 GB to download, 10 GB of disk free"
    assert rows["evo2_40b"]["obstacle"].startswith("needs 17")  # FP8 is simulated, kept in fp32


def test_a_published_file_is_known_by_its_name(tmp_path: Path) -> None:
    known = published_name
    assert known("evo2_7b@main") == "evo2_7b"
    assert known("nano") is None
    (tmp_path / "evo2_40b.pt.part0").touch()
    assert known(str(tmp_path)) == known(str(tmp_path / "evo2_40b.pt.part0")) == "evo2_40b"
    native = tmp_path / "mine"
    native.mkdir()
    (native / "provenance.json").write_text('{"source": "evo2_20b.pt", "layout": "released"}')
    assert known(str(native)) == "evo2_20b"
