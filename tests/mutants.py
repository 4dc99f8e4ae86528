"""Deliberate faults, one at a time, where numbers are made: `python -m tests.mutants [WORD]`.

In the functions below every comparison, operation, number, `not`, `min` and so on is changed in
turn, in a copy of the checkout, and the tests that should notice run there. What none of them
notices is printed: it needs a law, or a reason in `EQUIVALENT`. WORD limits the run to files and
functions that contain it.
"""

import ast
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 200  # a fault that never ends is noticed
SLOW_TO_IMPORT = ("torch", "huggingface_hub", "scipy.stats")

# File: functions (of a class: all) > the tests that should notice, cheap ones first.
TARGETS = """
models/stripedhyena2/sampling.py: Uniforms Sampler draw > stripedhyena2/test_sampling.py
evo2cli/genome/windows.py: agrees centred anchored anchor_step cut_windows _fitted_start
    > evo2cli/genome/test_windows.py evo2cli/score/test_windows.py
evo2cli/score/prefixes.py: CentredScorer AnchoredScorer > evo2cli/score/test_windows.py
evo2cli/training/loss.py: target_weights read_windows weighted_loss
    > evo2cli/training/test_loss.py
evo2cli/training/schedule.py: learning_rate > evo2cli/training/test_schedule.py
evo2cli/data/splits.py: content_sha256 SplitRule > evo2cli/data/test_tokens.py
evo2cli/data/order.py: hashed shuffled _feistel OnePool Mixture _floor_sum
    > evo2cli/data/test_order.py
evo2cli/eval/ranking.py: count_levels area_under_roc average_precision rank roc_curve
    > evo2cli/eval/test_variants.py
models/stripedhyena2/model.py: initial_values > stripedhyena2/test_initial.py
models/stripedhyena2/mixer.py: initial _apply
    > stripedhyena2/test_initial.py stripedhyena2/test_model.py
models/stripedhyena2/operators/hyena.py: initial _draw_log_poles > stripedhyena2/test_initial.py
models/stripedhyena2/parametrization.py: DecayingPoles PublishedPoles DecayWindow
    > stripedhyena2/test_model.py
models/stripedhyena2/model.py: forward _through_blocks unembed
    > stripedhyena2/test_model.py stripedhyena2/test_decoding.py
models/stripedhyena2/operators/attention.py: PreallocatedKV AttentionSlots rotary_frequencies
    forward step require_room > stripedhyena2/test_model.py stripedhyena2/test_decoding.py
models/stripedhyena2/decoding.py: Decoder > stripedhyena2/test_decoding.py
models/stripedhyena2/streaming.py: fallback fastest_streaming stream
    > stripedhyena2/test_streaming.py
models/stripedhyena2/scoring.py: ScoringState score_sequences mean_logprob _stream_logprobs
    > stripedhyena2/test_inference.py evo2cli/score/test_windows.py
models/stripedhyena2/pooling.py: keep_positions _Pool _mirrored
    > stripedhyena2/test_inference.py evo2cli/embed/test_embed.py
kernels/hyenakernels/norm/reference.py: rms_norm > hyenakernels/test_norm.py
kernels/hyenakernels/modal/reference.py: modal_conv _chunked _toeplitz
    > hyenakernels/test_references.py
kernels/hyenakernels/fir/reference.py: causal_fir > hyenakernels/test_references.py
kernels/hyenakernels/attention/reference.py: rotary rotary_angles append_token decode_attention
    > hyenakernels/test_attention.py stripedhyena2/test_model.py
"""

# Changes that no test can notice, as they are printed, and why.
EQUIVALENT: dict[str, str] = {}

OPERATORS: dict[type, type] = {
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.FloorDiv: ast.Mult, ast.Mod: ast.Add, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Not: ast.UAdd, ast.USub: ast.UAdd, ast.Invert: ast.UAdd},
}
NAMES = {"min": "max", "max": "min", "expm1": "exp", "minimum": "maximum", "maximum": "minimum"}


def change(node: ast.AST) -> bool:
    """Change a node in place, if there is a change for it."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
        node.ops[0] = OPERATORS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.UnaryOp) and type(node.op) in OPERATORS:
        node.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        is_flag = isinstance(node.value, bool)
        node.value = not node.value if is_flag else node.value + 1
    elif isinstance(node, ast.Name) and node.id in NAMES:
        node.id = NAMES[node.id]
    elif isinstance(node, ast.Attribute) and node.attr in NAMES:
        node.attr = NAMES[node.attr]
    else:
        return False
    return True


def computing(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that compute: no types, decorators, checks of our own, or messages."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(
                child, ast.Raise | ast.Assert | ast.JoinedStr
            ):
                yield from computing(child)


def faults(source: str, functions: set[str]) -> Iterator[tuple[str, str]]:
    """What each fault changes, and the source with it."""

    def nodes(tree: ast.Module) -> list[ast.AST]:
        parts = (part for part in ast.walk(tree) if getattr(part, "name", None) in functions)
        return [*dict.fromkeys(node for part in parts for node in computing(part))]

    for index in range(len(nodes(ast.parse(source)))):
        tree = ast.parse(source)
        node = nodes(tree)[index]
        before = ast.unparse(node)
        if change(node):
            yield f"{node.lineno}: {before} -> {ast.unparse(node)}", ast.unparse(tree)


def notices(folder: Path, tests: list[str]) -> bool:
    """Whether a test fails, in a process of its own."""
    if process := os.fork():
        return os.waitpid(process, 0)[1] != 0
    signal.alarm(SECONDS)  # which ends the process
    os.chdir(folder)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    files = [f"tests/{test}" for test in tests]
    os._exit(pytest.main(["-x", "-q", "-n0", "-p", "no:cacheprovider", *files]))


def main(word: str = "") -> int:
    """Run all faults; the exit code says whether one went unnoticed."""
    for library in SLOW_TO_IMPORT:  # once, not in the process of every fault
        import_module(library)
    counts: Counter[bool] = Counter()
    with TemporaryDirectory() as temporary:
        folder = Path(temporary, "copy")
        listed = subprocess.run(
            ["git", "ls-files"],  # noqa: S607 - of the path
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for file in listed.splitlines():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / file, folder / file)
        Path(temporary, "shared").symlink_to(ROOT.parent / "shared")
        for target in TARGETS.replace("\n    ", " ").strip().splitlines():
            names, _, tests = target.partition(" > ")
            file, _, functions = names.partition(": ")
            if word not in names:
                continue
            if notices(folder, tests.split()):
                sys.exit(f"{tests}: fail without a fault")
            source = (folder / file).read_text()
            for what, changed in faults(source, set(functions.split())):
                if what.partition(": ")[2] in EQUIVALENT:
                    continue
                (folder / file).write_text(changed)
                noticed = notices(folder, tests.split())
                counts[noticed] += 1
                if not noticed:
                    print(f"{file}:{what}", flush=True)
            (folder / file).write_text(source)
    print(f"{counts[True]} of {counts.total()} faults noticed")
    return min(counts[False], 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
