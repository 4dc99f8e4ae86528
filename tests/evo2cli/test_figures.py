"""Figures."""

import os
import subprocess
import sys

import pytest


def test_a_home_that_cannot_be_written_is_no_matter() -> None:
    pytest.importorskip("matplotlib", reason="matplotlib, of the extra plots, is not here")
    environment = {k: v for k, v in os.environ.items() if k not in ("MPLCONFIGDIR", "HOME")}
    environment |= {"HOME": os.devnull, "XDG_CONFIG_HOME": os.devnull, "XDG_CACHE_HOME": os.devnull}
    code = "from evo2cli.figures import new_figure; new_figure(1, 1)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout + result.stderr == ""
