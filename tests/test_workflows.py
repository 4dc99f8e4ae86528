"""The example workflow, beyond what docs/workflows.md shows."""

import shlex
from pathlib import Path

import pytest

from tests.shell import forked_evo2
from tests.test_docs import clone, run

__all__ = ["clone"]  # a fixture
WHOLE = "score examples/phix174.vcf --window 256 -O w.vcf.gz"
WORKFLOW = "snakemake -s examples/snakemake/Snakefile"

# Runs evo2, and kills the first run of shard 2/3 by SIGKILL once it has stored a score.
KILLER = """#!/bin/sh
case "$*" in
*"--shard 2/3"*)
    if mkdir killed 2> /dev/null; then
        {process} "$@" &
        until grep -qs EVO2_DELTA parts/2-of-3.vcf.journal || ! kill -0 $!; do sleep 0.02; done
        kill -9 $!
        wait $!
        exit 137
    fi ;;
esac
exec evo2-forked "$@"
"""

pytest.importorskip("snakemake", reason="needs snakemake")


@pytest.mark.slow
def test_parts_are_joined_in_their_order(clone: Path) -> None:
    """Also with more than nine, whose names are sorted otherwise."""
    planned = run(f"{WORKFLOW} --cores 1 --set-scatter shards=12 -n -p", clone)
    [merge] = [line for line in planned.splitlines() if "evo2 merge" in line]
    words = shlex.split(merge.partition("evo2 merge")[2])
    assert words[: words.index("-O")] == [f"parts/{i}-of-12.vcf" for i in range(1, 13)]
    for part in range(1, 13):
        assert f"--shard {part}/12 -O parts/{part}-of-12.vcf" in planned


@pytest.mark.slow
def test_a_part_that_was_killed_resumes(clone: Path) -> None:
    evo2 = clone / "bin" / "evo2"
    process = evo2.rename(clone / "bin" / "evo2-process")
    evo2.write_text(KILLER.format(process=process))
    evo2.chmod(0o755)
    with forked_evo2(clone / "bin" / "evo2-forked"):
        run(f"{WORKFLOW} --cores 1 --set-scatter shards=3 --quiet all", clone)
        run(f"OMP_NUM_THREADS=1 evo2-forked {WHOLE}", clone)
    assert (clone / "killed").is_dir()
    assert "resumed after" in (clone / "logs" / "score.2-of-3.log").read_text()
    assert (clone / "scored.vcf.gz").read_bytes() == (clone / "w.vcf.gz").read_bytes()
    assert not list((clone / "parts").glob("*"))
