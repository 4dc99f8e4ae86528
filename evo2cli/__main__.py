"""`evo2`, and `python -m evo2cli`: set up how the process ends, then load and run the rest."""

import os
import signal

from evo2cli.processes import (
    LAUNCHER,
    end_interrupted,
    end_with_parent,
    on_interrupt,
    was_interrupted,
)


def main() -> None:
    """Run the command line; Ctrl-C ends it quietly, also while it is loading."""
    if LAUNCHER in os.environ:
        end_with_parent(os.environ[LAUNCHER])
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # it is ignored
        _load_and_run()
        return
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        _load_and_run()
    except BaseException:
        if was_interrupted():
            end_interrupted()
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to tidy up


def _load_and_run() -> None:
    from evo2cli import app

    app.main()


if __name__ == "__main__":
    main()
