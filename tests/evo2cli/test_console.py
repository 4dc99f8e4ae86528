"""What `evo2` prints while it works."""

import pytest

from evo2cli import console


def test_a_long_task_shows_how_far_it_is_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(console, "monotonic", lambda: clock[0])
    shown = []
    with console.progress("score", 4_000, "records") as bar:
        for _ in range(4):
            clock[0] += 0.4 * console.SECONDS_BETWEEN_LINES
            bar.advance(1_000)
            shown.append(capsys.readouterr().err)
    assert [line.partition(",")[0] for line in shown] == ["", "", "evo2: score: 3", ""]
    assert "3,000 of 4,000 records" in shown[2]
    assert "4,000 records" in capsys.readouterr().err
