"""Refused requests: an HTTP status and one line for the client."""

import traceback
from dataclasses import fields

from evo2cli import console
from evo2cli.errors import UserError, without_dashes
from evo2cli.generate.options import GenerateOptions
from evo2cli.score.options import AlleleOptions
from evo2cli.serve.options import ServeOptions
from stripedhyena2.errors import InputError, InsufficientMemoryError, NonFiniteError
from stripedhyena2.memory import is_out_of_memory, out_of_memory

RETRY_AFTER = 1  # seconds
MAX_MESSAGE = 500  # characters
INTERNAL_ERROR = "an internal error; the server's log has more"
# Options of commands that are fields of requests; those of the server are not up to the client.
_FIELDS = {field.name for field in (*fields(GenerateOptions), *fields(AlleleOptions))}
_FIELDS -= {field.name for field in fields(ServeOptions)}


class Refusal(Exception):  # noqa: N818 - mostly not an error of the server
    """A refused request.

    Attributes:
        status: The HTTP status.
        message: One line that names the problem and the way out.
        details: For an invalid request, the fields and what is wrong with each.
    """

    def __init__(
        self, status: int, message: str, details: list[dict[str, object]] | None = None
    ) -> None:
        super().__init__(message)
        if len(message) > MAX_MESSAGE:  # it may quote the request
            message = f"{message[:MAX_MESSAGE]}..."
        self.status, self.message, self.details = status, message, details

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        if self.status in (429, 503):
            return {"Retry-After": str(RETRY_AFTER)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, object]:
        """JSON of the response: FastAPI's `detail`, and OpenAI's `error`."""
        kind = (
            "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        )
        error = {"message": self.message, "type": kind, "param": None, "code": self.status}
        return {"detail": self.details or self.message, "error": error}


def refusal_of(error: BaseException) -> Refusal:
    """The refusal for an error; a bug of ours is logged and gives 500."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InsufficientMemoryError):
        return Refusal(503, str(error))
    if isinstance(error, UserError | InputError):
        return Refusal(422, without_dashes(str(error), _FIELDS))
    if isinstance(error, NonFiniteError):
        return Refusal(500, str(error))
    if is_out_of_memory(error):
        return Refusal(503, f"{out_of_memory(error)}; try again, or ask for less")
    console.say("".join(traceback.format_exception(error)).rstrip())
    return Refusal(500, INTERNAL_ERROR)
