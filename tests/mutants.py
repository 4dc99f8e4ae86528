"""Deliberate faults, one at a time, where numbers are made: `python -m tests.mutants [WORD]`.

In the functions below every comparison, operation, number, `not`, `min` and so on is changed in
turn, and the tests that should notice run, each time in a process of its own, which gets the code
of the changed function: no file is written. What no test notices is printed: it needs a law, or a
reason in `EQUIVALENT`. WORD limits the run to files, functions and tests that contain it.
"""

import ast
import inspect
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SECONDS = 200  # a fault that never ends is noticed

# File: functions (of a class: all) > the tests that should notice, cheap ones first.
TARGETS = """
models/stripedhyena2/sampling.py: Uniforms Sampler draw > stripedhyena2/test_sampling.py
evo2cli/genome/windows.py: agrees centred anchored ending anchor_step cut_windows _fitted_start
    > evo2cli/genome/test_windows.py evo2cli/score/test_windows.py
evo2cli/score/prefixes.py: WindowReader Pair > evo2cli/score/test_windows.py
models/stripedhyena2/packing.py: Shapes Suffix Packer Batch > stripedhyena2/test_packing.py
evo2cli/training/loss.py: target_weights read_windows weighted_loss
    > evo2cli/training/test_loss.py
evo2cli/training/optimizer.py: learning_rate > evo2cli/training/test_optimizer.py
evo2cli/data/splits.py: content_sha256 SplitRule > evo2cli/data/test_tokens.py
evo2cli/data/sampler.py: hashed shuffled _feistel PooledSampler MixtureSampler _floor_sum
    > evo2cli/data/test_sampler.py
evo2cli/ranking.py: count_levels area_under_roc average_precision rank mean_estimate
    roc_curve > evo2cli/test_ranking.py
evo2cli/genome/coding.py: CodingSequence parse_mutant > evo2cli/genome/test_coding.py
evo2cli/eval/continuation.py: continue_by_counts _count_followers share_equal
    > evo2cli/eval/test_continuation.py
models/stripedhyena2/model.py: initial_values > stripedhyena2/test_initial.py
models/stripedhyena2/mixer.py: initial _apply
    > stripedhyena2/test_initial.py stripedhyena2/test_model.py
models/stripedhyena2/operators/hyena.py: initial _draw_log_poles > stripedhyena2/test_initial.py
models/stripedhyena2/parametrization.py: DecayingPoles PublishedPoles DecayWindow
    > stripedhyena2/test_model.py
models/stripedhyena2/model.py: forward through_blocks unembed
    > stripedhyena2/test_model.py stripedhyena2/test_decoding.py
models/stripedhyena2/operators/attention.py: PreallocatedKV AttentionSlots rotary_frequencies
    forward step check_capacity > stripedhyena2/test_model.py stripedhyena2/test_decoding.py
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
EQUIVALENT = {
    "for order in range(highest, -<<1 -> 2>>, -1):": "some base always follows no bases",
    "return np.bincount(pairs, minlength=4 ** (order + <<1 -> 2>>)).reshape(-1, 4)": (
        "rows of sequences that do not exist are never looked at"
    ),
    "return np.bincount(pairs, minlength=4 ** (order + 1)).reshape(-<<1 -> 2>>, 4)": (
        "numpy takes any negative size for the one that is left"
    ),
    "if self.top_k > <<0 -> 1>>:": "k = 1 is greedy, which has returned before",
    "half = (np.frexp(np.maximum(sizes - 1, <<1 -> 2>>))[1].astype(np.uint64) + _ONE) >> _ONE": (
        "1 and 2 take as many bits in pairs"
    ),
    "root = square.masked_fill(is_zero, <<1 -> 2>>).sqrt().masked_fill(is_zero, 0)": (
        "any number above 0 will do: it is replaced behind the root"
    ),
    "if length == <<1 -> 2>>:  # the setup of conv1d takes ten times as long as the sum": (
        "both ways compute the same"
    ),
    "return cls(keys_BHTW[:, :, :0], values_BHTW[:, :, :<<0 -> 1>>], memory)": (
        "the keys alone say how many there are, and the values are cut from the memory again"
    ),
    "seen, capacity = past.keys_BHTW.shape[2], past.memory[<<0 -> 1>>].shape[2]": (
        "there is room for as many values as keys"
    ),
    'self._can_record = <<devices == {device} -> devices != {device}>> and device.type == "cuda"': (
        "needs a GPU to show: test_a_graph_step_is_an_eager_step"
    ),
    "self._logits_BV = self._ids_B1.new_empty(<<0 -> 1>>)": "replaced by the first step",
    "sums = accumulate((Fraction(weight) / total for weight in weights), "
    "initial=Fraction(<<0 -> 1>>))": "only differences of these sums are used",
    "total = <<0 -> 1>>": "of two such sums only the difference is used",
    "self._part_ends = list(accumulate((unit % _UNITS for unit in units), initial=<<0 -> 1>>))": (
        "moves borders by 2**-32 of a sample, which shows in one of 2**32 periods"
    ),
}

OPERATORS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Add,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Not: ast.UAdd,
    ast.USub: ast.UAdd,
    ast.Invert: ast.UAdd,
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
            is_check = isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr)
            if isinstance(child, ast.keyword) and child.arg == "strict":  # of zip
                is_check = True
            if isinstance(child, ast.AST) and not is_check:
                yield from computing(child)


def faults(source: str, functions: set[str]) -> Iterator[tuple[int, str, ast.Module]]:
    """The line of each fault, what it changes, and the module with it."""

    def nodes(tree: ast.Module) -> list[ast.AST]:
        named = (node for node in ast.walk(tree) if getattr(node, "name", None) in functions)
        inside = (node for part in named for node in ast.walk(part))
        bodies = (node.body for node in inside if isinstance(node, ast.FunctionDef))
        return [*dict.fromkeys(x for body in bodies for part in body for x in computing(part))]

    for index in range(len(nodes(ast.parse(source)))):
        tree = ast.parse(source)
        node = nodes(tree)[index]
        before = ast.unparse(node)
        if change(node):
            line = source.splitlines()[node.lineno - 1]
            end = node.end_col_offset if node.end_lineno == node.lineno else len(line)
            what = f"{line[: node.col_offset]}<<{before} -> {ast.unparse(node)}>>{line[end:]}"
            yield node.lineno, what.strip(), tree


def put(tree: ast.Module, file: str) -> None:
    """Give the functions of a module, wherever they are referred to, the code of another tree."""
    path = file.removeprefix("models/").removeprefix("kernels/").removesuffix(".py")
    module = import_module(path.replace("/", "."))

    def put_all(code: CodeType, holder: Any) -> None:
        for inner in (x for x in code.co_consts if isinstance(x, CodeType)):
            found = inspect.getattr_static(holder, inner.co_name, None)
            found = found.fget if isinstance(found, property) else found
            found = inspect.unwrap(getattr(found, "__func__", found))
            if inspect.isfunction(found):
                found.__code__ = inner
            elif inspect.isclass(found):
                put_all(inner, found)

    put_all(compile(tree, str(ROOT / file), "exec"), module)


class Faults:
    """A plugin of pytest that runs tests once for every fault.

    A target is a file, its functions, and their tests.
    """

    def __init__(self, targets: list[tuple[str, set[str], set[str]]]) -> None:
        self.targets = targets
        self.counts: Counter[bool] = Counter()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """In the process of a fault, leave its tests to pytest; in the first one, none."""
        items = session.items[:]
        for file, functions, tests in self.targets:
            source = (ROOT / file).read_text()
            own = [item for item in items if str(item.path.relative_to(ROOT / "tests")) in tests]
            for line, what, tree in [(0, "", ast.parse(source)), *faults(source, functions)]:
                if what in EQUIVALENT:
                    continue
                if not (process := os.fork()):
                    session.items[:] = own
                    return begin(tree, file)
                noticed = os.waitpid(process, 0)[1] != 0
                if what:
                    self.counts[noticed] += 1
                elif noticed:  # everything would seem to be noticed
                    print(f"{file}: these tests fail without a fault: {tests}")  # noqa: T201
                    break
                if what and not noticed:
                    print(f"{file}:{line}: {what}", flush=True)  # noqa: T201 - a script for developers
        session.items.clear()
        return None


def begin(tree: ast.Module, file: str) -> None:
    """Begin a process of a fault: silent, for a while, and with the code of the fault."""
    signal.alarm(SECONDS)  # which ends the process
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    put(tree, file)


def main(word: str = "") -> int:
    """Run all faults; the exit code says whether one went unnoticed."""
    lines = TARGETS.replace("\n    ", " ").strip().splitlines()
    split = (line.replace(": ", " > ").split(" > ") for line in lines if word in line)
    targets = [(file, {*names.split()}, {*tests.split()}) for file, names, tests in split]
    plugin, first = Faults(targets), os.getpid()
    files = dict.fromkeys(f"tests/{test}" for _, _, tests in targets for test in sorted(tests))
    options = ["-x", "-n0", "-s", "-p", "no:cacheprovider", "-p", "no:terminal"]
    options += ["-k", "not compile"]  # torch's compiler does not survive a fork
    code = pytest.main([*options, *files], plugins=[plugin])
    if os.getpid() != first:
        os._exit(code)
    print(f"{plugin.counts[True]} of {plugin.counts.total()} faults noticed")  # noqa: T201
    return min(plugin.counts[False], 1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
