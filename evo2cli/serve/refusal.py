"""Why a request is not answered: a status of HTTP and one line for the client."""

import traceback

from evo2cli import console
from evo2cli.errors import UserError
from stripedhyena2.errors import InputError, InsufficientMemoryError, NonFiniteError
from stripedhyena2.memory import is_out_of_memory, out_of_memory

RETRY_AFTER = 1  # seconds
MAX_MESSAGE = 500  # characters
DEFECT = "an internal error; the server's log has more"


class Refusal(Exception):  # noqa: N818 - most are no error of the server
    """A request that is not answered.

    Attributes:
        status: The status of HTTP.
        message: One line that names the problem and the way out.
        details: For a request that is not valid: where, and what is wrong there.
    """

    def __init__(
        self, status: int, message: str, details: list[dict[str, object]] | None = None
    ) -> None:
        super().__init__(message)
        if len(message) > MAX_MESSAGE:  # it may quote what was sent
            message = f"{message[:MAX_MESSAGE]}..."
        self.status, self.message, self.details = status, message, details

    @property
    def headers(self) -> dict[str, str]:
        """Headers that tell the client what to do."""
        if self.status in (429, 503):
            return {"Retry-After": str(RETRY_AFTER)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> dict[str, object]:
        """JSON for every kind of client: `detail` as FastAPI has it, and `error` as OpenAI has."""
        kind = (
            "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        )
        error = {"message": self.message, "type": kind, "param": None, "code": self.status}
        return {"detail": self.details or self.message, "error": error}


def refusal_of(error: BaseException) -> Refusal:
    """What a client is told of an error; one that is a defect of ours is logged."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InsufficientMemoryError):
        return Refusal(503, str(error))
    if isinstance(error, UserError | InputError):
        return Refusal(422, str(error))
    if isinstance(error, NonFiniteError):
        return Refusal(500, str(error))
    if is_out_of_memory(error):
        return Refusal(503, f"{out_of_memory(error)}; try again, or ask for less")
    console.say("".join(traceback.format_exception(error)).rstrip())
    return Refusal(500, DEFECT)
