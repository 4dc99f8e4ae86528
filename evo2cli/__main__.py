"""`evo2` and `python -m evo2cli`: install signal handling, then import and run the command line."""

import os
import signal

from evo2cli.processes import (
    LAUNCHER,
    end_interrupted,
    end_with_parent,
    handled_stops,
    on_interrupt,
    was_interrupted,
)


def main() -> None:
    """Run the command line; a signal ends it without a traceback, even during imports."""
    if LAUNCHER in os.environ:
        end_with_parent(os.environ[LAUNCHER])
    handled = handled_stops()
    for number in handled:
        signal.signal(number, on_interrupt)
    try:
        _load_and_run()
    except BaseException:
        if was_interrupted():
            end_interrupted()
        raise
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)  # nothing is left to clean up


def _load_and_run() -> None:
    from evo2cli import app

    app.main()


if __name__ == "__main__":
    main()
