"""Sequences as the model reads them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stripedhyena2
from stripedhyena2 import InputError
from stripedhyena2.dna import as_read, check_sequences, strand_of, strands_of


def test_letters_are_upper_case_dna_outside_of_tags() -> None:
    assert as_read(b"acgunRy") == b"ACGTNRY"
    assert as_read(b"|d__u;s__Uu|augU|u|u") == b"|D__U;S__UU|ATGT|U|T"
    assert as_read(b"u|u") == b"T|T"


def test_strands() -> None:
    assert [strand_of(b"AACG", strand) for strand in strands_of("both")] == [b"AACG", b"CGTT"]
    with pytest.raises(InputError, match="strand='up': must be one of fwd, rc, both"):
        strands_of("up")


def test_sequences_that_cannot_be_read_are_named() -> None:
    assert check_sequences(["AC", b"GT", bytearray(b"T")]) == [b"AC", b"GT", b"T"]
    for sequences, message in (
        ("ACGT", "expected a list of sequences"),
        ({"x": "ACGT"}, "expected a list of sequences and got dict"),
        ({"ACGT"}, "expected a list of sequences and got set"),
        (["AC", ""], "sequence 1 is empty; give at least one base"),
        (["AC GT"], "sequence 0: has spaces"),
        ([b"AC\n"], "sequence 0: has spaces"),
        (["ACé"], "sequence 0: 'é' is not ASCII"),
        ([b"A\xff"], "sequence 0: 255 is not ASCII"),
    ):
        with pytest.raises(InputError, match=message):
            check_sequences(sequences)
    assert check_sequences(["|D__X|AC"]) == [b"|D__X|AC"]
    with pytest.raises(InputError, match="sequence 0: a lineage tag has no reverse complement"):
        check_sequences(["|D__X|AC"], strands=("fwd", "rc"))
    with pytest.raises(InputError, match="prompt 0 has only 1 base; give at least 2"):
        check_sequences(["A"], what="prompt", min_length=2)


def test_importing_it_does_not_import_torch() -> None:
    code = "import sys, stripedhyena2.dna; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_every_name_of_the_package_is_there_for_type_checkers_too() -> None:
    tree = ast.parse(Path(stripedhyena2.__file__).read_text())
    checked = {
        (alias.name, (node.module or "").rpartition(".")[2])
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stripedhyena2.")
        for alias in node.names
    }
    assert checked == set(stripedhyena2._MODULES.items())
    for name in dir(stripedhyena2):
        assert getattr(stripedhyena2, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        stripedhyena2.nothing  # noqa: B018
