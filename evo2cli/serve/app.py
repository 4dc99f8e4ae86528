"""The web application: all paths, and one way to refuse a request."""

from dataclasses import asdict

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, Response
from fastapi_offline import FastAPIOffline

from evo2cli import __version__
from evo2cli.errors import UserError
from evo2cli.models import precision_name
from evo2cli.score.output import FIELDS
from evo2cli.serve import generate, mcp, native, nim, openai, page
from evo2cli.serve.answers import Json, refused
from evo2cli.serve.engine import Engine
from evo2cli.serve.guard import Guard, read_keys
from evo2cli.serve.options import ServeOptions
from evo2cli.serve.refusal import DEFECT, Refusal, refusal_of
from stripedhyena2.errors import InputError


def make_app(options: ServeOptions, engine: Engine, name: str) -> Guard:
    """The application that answers by `engine`.

    Args:
        options: Options of the command.
        engine: What runs the model.
        name: The name of the model.

    Raises:
        UserError: The file of keys is not valid, or --mcp-root is not a folder.
    """
    app = FastAPIOffline(
        title="evo2 serve",
        version=__version__,
        description="An Evo 2 genomic language model over HTTP.",
        redoc_url=None,
        static_url="/docs/static",
        swagger_ui_parameters={"validatorUrl": None},  # would ask a server elsewhere
    )
    guard = Guard(app, read_keys(options.api_key_file), options.host, options.max_body * 2**20)
    app.include_router(mcp.routes(engine, name, options))
    app.include_router(nim.routes(engine, options.max_layers))
    app.include_router(openai.routes(engine, name))
    app.include_router(native.routes(engine))
    app.include_router(generate.routes(engine))
    app.include_router(page.routes())
    _add_state(app, options, engine, guard, name)
    for kind in (
        Refusal,
        UserError,
        InputError,
        RequestValidationError,
        *range(400, 500),
        Exception,
    ):
        app.add_exception_handler(kind, _refuse)
    return guard


def _refuse(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        # Without the input, which may be large, or NaN, which JSON does not have.
        details: list[dict[str, object]] = [
            {key: found[key] for key in ("type", "loc", "msg")} for found in error.errors()[:20]
        ]
        first = details[0]
        where = ".".join(map(str, first["loc"] if isinstance(first["loc"], tuple) else ()))
        message = f"{where}: {first['msg']}"
        if where == "body" and "json" not in request.headers.get("content-type", ""):
            message = "body: send JSON, with the header Content-Type: application/json"
        return refused(Refusal(422, message, details))
    if isinstance(error, UserError | InputError | Refusal):
        return refused(refusal_of(error))
    # An HTTPException, of FastAPI or of Starlette below it; or a defect, which uvicorn logs.
    status, message = getattr(error, "status_code", 500), str(getattr(error, "detail", DEFECT))
    headers = getattr(error, "headers", None) or {}
    if status == 405:
        message = f"{request.method}: is not answered at this path; use {headers['Allow']}"
    answer = refused(Refusal(status, message))
    answer.headers.update(headers)
    return answer


def _add_state(
    app: FastAPI, options: ServeOptions, engine: Engine, guard: Guard, name: str
) -> None:
    """Paths about the server itself."""

    @app.get("/v1/health/live", tags=["server"])
    async def live() -> Response:
        """Whether the server runs."""
        return Json({"status": "live"})

    @app.get("/v1/health/ready", tags=["server"])
    async def ready() -> Response:
        """Whether requests are answered; 503 while the model is loaded."""
        engine.require_served()
        return Json({"status": "ready"})

    @app.get("/v1/metadata", tags=["server"])
    async def metadata() -> Response:
        """What is served."""
        served = engine.require_served()
        config = served.model.config
        return Json(
            {
                "id": name,
                "version": __version__,
                "modelInfo": [{"shortName": name, "modelUrl": ""}],
                "adapter": options.adapter and options.adapter.name,
                "reference": options.reference and options.reference.name,
                "blocks": config.depth,
                "width": config.width,
                "context": config.context,
                "dtype": precision_name(served.model),
                "max_bases": served.max_bases,
                "max_layers": options.max_layers,
                "genes": None if served.genes is None else len(served.genes),
                "background": served.background is not None,
                "noise": served.noise and asdict(served.noise),
                "fields": {
                    name: {"type": kind, "description": what}
                    for name, (kind, what) in FIELDS.items()
                },
            }
        )

    @app.get("/metrics", tags=["server"])
    async def metrics() -> Response:
        """Counts for Prometheus."""
        return PlainTextResponse(
            metrics_text(engine, guard), media_type="text/plain; version=0.0.4"
        )


def metrics_text(engine: Engine, guard: Guard) -> str:
    """Counts in the text format of Prometheus."""
    lines: list[str] = []

    def add(name: str, kind: str, what: str, values: dict[str, float]) -> None:
        lines.extend([f"# HELP evo2_{name} {what}", f"# TYPE evo2_{name} {kind}"])
        lines.extend(f"evo2_{name}{labels} {value}" for labels, value in values.items())

    counts = engine.counts
    add(
        "requests_total",
        "counter",
        "Answers by path and status.",
        {
            f'{{path="{path}",status="{status}"}}': number
            for (path, status), number in sorted(guard.answered.items())
        },
    )
    add(
        "request_seconds_total",
        "counter",
        "Seconds that answers took.",
        {f'{{path="{path}"}}': round(value, 3) for path, value in sorted(guard.seconds.items())},
    )
    add("ready", "gauge", "Whether requests are answered.", {"": int(engine.is_ready)})
    add("jobs", "gauge", "Requests that wait or are worked on.", {"": engine.num_jobs})
    add("rows_growing", "gauge", "Sequences that grow.", {"": engine.num_growing})
    add("tokens_total", "counter", "Tokens that were drawn.", {"": counts.tokens})
    add("pieces_total", "counter", "Pieces of other work.", {"": counts.pieces})
    ended = {f'{{how="{how}"}}': float(number) for how, number in counts.ended.items()}
    add("jobs_total", "counter", "Requests that are over.", ended)
    return "\n".join(lines) + "\n"
