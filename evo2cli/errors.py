"""Errors of commands and their exit codes: 2 bad input, 3 too many skipped records, 4 numerics."""


class UserError(ValueError):
    """Something the user can fix: the command line prints it as one line, without a traceback.

    The message names the thing, its value and how to fix it.
    """

    exit_code = 2


class TooManySkippedError(UserError):
    """The command finished, but more records were skipped than the threshold allows."""

    exit_code = 3


class UntrustedNumericsError(UserError):
    """A result is NaN or infinite, so no number of this run can be trusted."""

    exit_code = 4
