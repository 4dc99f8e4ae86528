"""`evo2 launch`: what is checked, written and started; signals reach ranks, and codes come back."""

import fcntl
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from evo2cli import gpus
from evo2cli.app import app
from evo2cli.errors import UserError
from evo2cli.launch import checks as launch_checks
from evo2cli.launch.ranks import Group, first_failure, run_ranks
from evo2cli.training import space
from stripedhyena2.outputs import OutputInUseError
from tests.evo2cli.tiny import RECIPE, SHAPE
from tests.ranks import forked, wait_until

# A rank: what happens to the one named first, and the code with which the others obey SIGTERM.
RANK = """
import os, signal, sys, time
from pathlib import Path
from evo2cli.processes import LAUNCHER, end_with_parent
end_with_parent(os.environ[LAUNCHER])
rank = os.environ["RANK"]
def obey(number, frame):
    Path(f"{rank}.heard").write_text(signal.Signals(number).name)
    sys.exit(int(sys.argv[3]))
signal.signal(signal.SIGTERM, obey)
assert (os.environ["WORLD_SIZE"], os.environ["LOCAL_RANK"]) == ("2", rank)
Path(f"{rank}.pid").write_text(str(os.getpid()))
Path(f"{rank}.ready").touch()
while sys.argv[1] == rank and not Path("0.ready").exists():
    time.sleep(0.01)
if sys.argv[1] == rank:
    exec(sys.argv[2])
while True:
    time.sleep(0.01)
"""


def drive(place: Path, launcher: str, *arguments: str) -> None:
    """Launch what stands for `evo2 train`, as the command line would."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(place)
    try:
        run_ranks(Group(2), ["rank.py", *arguments], launcher)
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        print(f"evo2: {error}", file=sys.stderr)  # noqa: T201 - as the command line does
        sys.exit(error.exit_code)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and its shape, the current one, on a machine without GPUs."""
    (tmp_path / "tiny.toml").write_text(SHAPE)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpus, "num_gpus", lambda: 0)
    return tmp_path


def launch(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["launch", "recipe.toml", *arguments])


def refusal(*arguments: str) -> str:
    result = launch(*arguments)
    assert isinstance(result.exception, UserError), result.output
    assert result.exception.exit_code == 2
    assert "\n" not in str(result.exception)
    assert result.stdout == ""
    return str(result.exception)


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_the_command_line_carries_what_train_is_told(
    place: Path, monkeypatch: pytest.MonkeyPatch, launcher: str
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    told = ["--set", "seed=3", "--set", "model='tiny'"]
    told += ["--json", "--device", "cpu", "--output", "a b"]
    result = launch("--local", "2", "--dry-run", "--launcher", launcher, *told)
    assert result.exit_code == 0, result.output
    threads, python, *words = shlex.split(result.stdout)
    assert threads.startswith("OMP_NUM_THREADS=")
    assert python == sys.executable
    module = {"torchrun": "torch.distributed.run", "deepspeed": "deepspeed.launcher.launch"}
    assert words[:2] == ["-m", module[launcher]]
    program = words[words.index("evo2cli") - 1 :]
    assert program == ["-m", "evo2cli", "train", "recipe.toml", *told]
    assert not (place / "run").exists()


@pytest.mark.usefixtures("place")
def test_all_means_every_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "num_gpus", lambda: 4)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert "--nproc-per-node 4 " in launch("--local", "all", "--dry-run").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --local N or --slurm"),
        (["--local", "1", "--slurm"], "give either --local N or --slurm"),
        (["--local", "none"], "--local none: must be all, or a number from 1"),
        (["--local", "0"], "--local 0: must be all, or a number from 1"),
        (["--local", "all"], "--local all: this machine has no GPU; give a number"),
        (["--local", "2", "--device", "cuda"], "--local 2: this machine has 0 GPUs; use fewer"),
        (["--local", "3"], "recipe.toml: batch.sequences = 4 cannot be shared by 3 GPUs"),
        (["--local", "1", "--set", "batch.sequence=3"], "[batch] has no key 'sequence'; did you"),
        (["--local", "1", "--output", "tiny.toml/run"], "tiny.toml is not a writable folder"),
        (["--local", "1", "--nodes", "2"], "--nodes 2: also needs --rendezvous HOST:PORT"),
        (["--local", "1", "--rendezvous", "here"], "--rendezvous here: must be host:port"),
        (["--local", "1", "--time", "1:00"], "--local starts ranks without Slurm; drop --time"),
        (["--slurm", "--dry-run"], "--slurm only writes a script; drop --dry-run"),
        (["--slurm"], "sequences = 4 cannot be shared by 8 GPUs"),
        (["--slurm", "--gpus-per-node", "2", "--sbatch", "A=1"], "--sbatch A=1: must be key=value"),
        (["--slurm", "--gpus-per-node", "2", "--time", '"'], "sbatch allows no quotes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_run_is_said_in_one_line(
    place: Path, arguments: list[str], message: str
) -> None:
    assert message in refusal(*arguments)
    assert not (place / "run").exists()


@pytest.mark.usefixtures("place")
def test_a_port_in_use_is_refused_where_it_is() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
        message = refusal("--local", "1", "--nodes", "2", "--rendezvous", endpoint)
    assert message == f"--rendezvous {endpoint}: the port is in use; choose another"
    result = launch("--local", "1", "--nodes", "2", "--rendezvous", endpoint, "--dry-run")
    assert f"--nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint {endpoint} " in (
        result.stdout
    )


@pytest.mark.usefixtures("place")
def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_checks.importlib.util, "find_spec", lambda _name: None)
    assert refusal("--local", "2") == (
        "recipe.toml: a run of 2 ranks needs DeepSpeed; pip install 'evo2cli[train]'"
    )
    assert "parallel.zero = 3 needs DeepSpeed" in refusal(
        "--local", "1", "--set", "parallel.zero=3"
    )
    assert launch("--local", "1", "--dry-run").exit_code == 0
    monkeypatch.setattr(gpus, "num_gpus", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    assert "has no NCCL, which GPUs communicate through" in refusal("--local", "2")
    assert (
        refusal("--local", "4") == "--local 4: this machine has 2 GPUs; use fewer, or --device cpu"
    )


def test_a_disk_too_small_is_refused_with_both_numbers(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--local", "1", "--dry-run", "--set", "model='models/evo2_7b'")
    settings = (*asked, "--set", "checkpoint.every=2")  # 4 checkpoints in all
    parameters = 6_581_722_880
    needed = 3 * 16 * parameters  # keep = 2 and the one being written
    monkeypatch.setattr(space, "free_bytes", lambda _folder: needed)
    assert launch(*settings).exit_code == 0
    monkeypatch.setattr(space, "free_bytes", lambda _folder: needed - 1)
    message = refusal(*settings)
    assert "3 checkpoints of 105.3 GB (6,581,722,880 parameters) and the final model" in message
    assert "need 315.9 GB" in message
    assert "315.9 GB free" in message
    assert "checkpoint.keep = 2" in message
    assert "checkpoint.optimizer = false" in message
    assert launch(*settings, "--set", "checkpoint.optimizer=false").exit_code == 0
    (place / "run" / "step-000000002").mkdir(parents=True)  # that one is there already
    assert launch(*settings).exit_code == 0
    # 8 steps with a checkpoint every 500 write a single one, and final/.
    monkeypatch.setattr(space, "free_bytes", lambda _folder: (16 + 4) * parameters)
    assert launch(*asked).exit_code == 0


def script(*arguments: str) -> str:
    result = launch("--slurm", "--nodes", "2", "--gpus-per-node", "2", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_slurm_script_says_what_was_asked(place: Path) -> None:
    asked = ["--time", "24:00:00", "--partition", "gpu", "--account", "lab", "--job-name", "first"]
    text = script(*asked, "--sbatch", "exclusive", "--sbatch", "signal=TERM@600")
    lines = text.splitlines()
    assert lines[0] == "#!/bin/bash"
    for directive in (
        *("nodes=2", "gpus-per-node=2", "ntasks-per-node=1", "time=24:00:00", "partition=gpu"),
        *("account=lab", "job-name=first", "exclusive", "signal=TERM@600", "requeue"),
        f"chdir={place}",
    ):
        assert f"#SBATCH --{directive}" in lines
    assert (
        f"#   evo2 launch recipe.toml --slurm --nodes 2 --gpus-per-node 2 {shlex.join(asked)} "
        in (text)
    )
    assert "@" not in text.replace("TERM@600", "")
    assert "#SBATCH --signal=TERM@120" in script().splitlines()
    assert "#SBATCH --job-name=recipe" in script().splitlines()
    where = [line for line in script().splitlines() if "/" in line and not line.startswith("#!")]
    assert {line for line in where if str(place) in line} == {f"#SBATCH --chdir={place}"}
    assert not any(sys.prefix in line for line in where)


@pytest.mark.parametrize("name", ["it's", "a b", "$HOME", 'q"'])
def test_a_slurm_script_is_sound_bash(place: Path, name: str) -> None:
    text = script("--output", name, "-O", "job.sh")
    assert text == ""
    subprocess.run(["bash", "-n", "job.sh"], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "--severity", "warning", "job.sh"], check=True)
    assert refusal("--slurm", "--gpus-per-node", "2", "-O", "no/job.sh").startswith("no/job.sh: ")
    assert sorted(file.name for file in place.iterdir()) == ["job.sh", "recipe.toml", "tiny.toml"]


@pytest.mark.parametrize(
    ("state", "code", "finished", "requeued"),
    [
        ("RUNNING", 0, False, True),
        ("RUNNING", 0, True, False),
        ("RUNNING", 4, False, False),
        ("CANCELLED", 0, False, False),
    ],
)
def test_a_stopped_job_queues_itself_again(
    place: Path, state: str, code: int, finished: bool, requeued: bool
) -> None:
    """The script under stand-ins for Slurm and evo2 that write down what they are told."""
    told = 'printf "%s\\n" "$0" "$@" >> told; '
    stand_ins = {
        "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
        "evo2": f"{told} env >> environment; exit {code}",
        "scontrol": f"[[ $1 == show ]] && printf 'one\\ntwo\\n' || {{ {told} }}",
        "squeue": f"echo {state}",
    }
    for name, body in stand_ins.items():
        (place / name).write_text(f"#!/bin/bash\n{body}\n")
        (place / name).chmod(0o755)
    if finished:
        (place / "a b" / "final").mkdir(parents=True)
        (place / "a b" / "final" / "provenance.json").touch()
    slurm = {
        "SLURM_CPUS_PER_TASK": "16",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "[one-two]",
        "SLURM_JOB_NUM_NODES": "2",
        "PATH": f"{place}{os.pathsep}{os.environ['PATH']}",
    }
    text = script("--output", "a b", "--set", "seed=1")
    result = subprocess.run(["bash", "-c", text], env={**os.environ, **slurm}, check=False)
    assert result.returncode == code
    words = (place / "told").read_text().splitlines()
    start = ["launch", "recipe.toml", "--set", "seed=1", "--output", "a b", "--local", "2"]
    meet = ["--nodes", "2", "--rendezvous", "one:23456"]
    again = [str(place / "scontrol"), "requeue", "123456"] if requeued else []
    assert words == [str(place / "evo2"), *start, *meet, *again]
    assert "OMP_NUM_THREADS=8\n" in (place / "environment").read_text()


def start(place: Path, *arguments: str) -> ForkServerProcess:
    """Two stand-ins for `evo2 train` behind a launcher, both ready."""
    (place / "rank.py").write_text(RANK)
    launched = forked(place / "told", drive, place, *arguments)
    ready = [place / f"{rank}.ready" for rank in (0, 1)]
    wait_until(lambda: all(file.exists() for file in ready) or not launched.is_alive())
    assert launched.is_alive(), finish(place, launched)
    return launched


def finish(
    place: Path, launched: ForkServerProcess, timeout: float = 600
) -> tuple[int | None, str]:
    """The exit code of a launcher, None if it does not end in time, and what it has told."""
    launched.join(timeout)
    return launched.exitcode, (place / "told").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number", "code"),
    [
        ("torchrun", signal.SIGTERM, 4),
        ("deepspeed", signal.SIGINT, 0),
    ],
)
def test_a_signal_reaches_every_rank_and_their_code_comes_back(
    place: Path, launcher: str, number: signal.Signals, code: int
) -> None:
    launched = start(place, launcher, "nobody", "", str(code))
    os.kill(launched.pid, number)
    found, told = finish(place, launched)
    assert found == code, told
    assert f"evo2: {number.name}: 2 ranks, asking them to save and exit\n" in told
    for rank in (0, 1):
        assert (place / f"{rank}.heard").read_text() == "SIGTERM"


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "code"), [("torchrun", 2), ("deepspeed", 4)])
def test_a_rank_that_dies_ends_the_others_and_is_named(
    place: Path, launcher: str, code: int
) -> None:
    launched = start(place, launcher, "1", f"sys.exit({code})", "0")
    found, told = finish(place, launched)
    assert found == code, told
    assert told.splitlines()[-1] == (
        f"evo2: rank 1 exited with code {code}, for the reason above; "
        "the other ranks of this machine were stopped"
    )
    if launcher == "torchrun":  # DeepSpeed's ends the parent of a rank, and so the rank, at once
        assert (place / "0.heard").exists()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_a_rank_that_a_signal_ends_is_named_by_it(place: Path, launcher: str) -> None:
    """Though the other one is stopped and hears no signal but SIGKILL."""
    act = "os.kill(int(Path('0.pid').read_text()), 19); os.kill(os.getpid(), 9)"
    launched = start(place, launcher, "1", act, "0")
    found, told = finish(place, launched, timeout=25)  # the launchers by themselves wait 30 s
    assert found == 128 + signal.SIGKILL, told
    assert "evo2: rank 1 was killed by SIGKILL; the other ranks" in told.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_an_interrupt_before_ranks_can_save_is_the_end_of_all(place: Path, launcher: str) -> None:
    act = "signal.signal(signal.SIGTERM, signal.SIG_DFL); Path('loading').touch()"
    launched = start(place, launcher, "1", act, "0")
    wait_until((place / "loading").exists)
    os.kill(launched.pid, signal.SIGINT)
    found, told = finish(place, launched)
    assert found == 130, told
    assert "for the reason above" not in told


def test_a_folder_that_another_run_holds_is_refused(place: Path) -> None:
    (place / "run").mkdir()
    with (place / "run" / ".run.json.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = launch("--local", "1")
        assert isinstance(result.exception, OutputInUseError)
        assert str(result.exception).startswith("run/run.json: is being written by another process")
        assert launch("--local", "1", "--dry-run").exit_code == 0


def test_a_script_may_name_any_bytes(place: Path) -> None:
    name = os.fsdecode(b"\xff")
    assert launch("--slurm", "--gpus-per-node", "2", "--output", name, "-O", "x.sh").exit_code == 0
    assert b"--output '\xff'" in (place / "x.sh").read_bytes()


def test_of_many_failures_one_with_a_reason_is_told() -> None:
    killed = first_failure({3: -9, 0: -15})
    assert (str(killed).partition(";")[0], killed.exit_code) == (
        "rank 3 was killed by SIGKILL",
        137,
    )
    terminated = first_failure({1: 128 + signal.SIGTERM})  # as `evo2` reports it
    assert (str(terminated).partition(";")[0], terminated.exit_code) == (
        "rank 1 was killed by SIGTERM",
        143,
    )
    assert str(first_failure({1: 255})).startswith("rank 1 exited with code 255")
    assert first_failure({0: 1, 2: 1}).exit_code == 1
    assert str(first_failure({0: 1, 2: 4})).startswith("rank 2 exited with code 4")
