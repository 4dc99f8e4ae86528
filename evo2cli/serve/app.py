"""The web application: all paths, and the responses of refused requests."""

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
from evo2cli.serve.answers import Json, refusal_response
from evo2cli.serve.engine import Engine
from evo2cli.serve.guard import Guard, read_keys
from evo2cli.serve.options import ServeOptions
from evo2cli.serve.refusal import INTERNAL_ERROR, Refusal, refusal_of
from stripedhyena2.errors import InputError


def make_app(options: ServeOptions, engine: Engine, name: str) -> Guard:
    """Create the application.

    Args:
        options: Options of the command.
        engine: Runs the model.
        name: Name of the model.

    Raises:
        UserError: The file of keys is not valid, or --mcp-root is not a folder.
    """
    app = FastAPIOffline(
        title="evo2 serve",
        version=__version__,
        description="An Evo 2 genomic language model over HTTP.",
        redoc_url=None,
        static_url="/docs/static",
        swagger_ui_parameters={"validatorUrl": None},  # the default is an external server
    )
    guard = Guard(app, read_keys(options.api_key_file), options.host, options.max_body * 2**20)
    app.include_router(mcp.routes(engine, name, options))
    app.include_router(nim.routes(engine, options.max_layers))
    app.include_router(openai.routes(engine, name))
    app.include_router(native.routes(engine))
    app.include_router(generate.routes(engine))
    app.include_router(page.routes())
    _add_server_paths(app, options, engine, guard, name)
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
        # Without the input, which may be large, or NaN, which JSON cannot hold.
        details: list[dict[str, object]] = [
            {key: each[key] for key in ("type", "loc", "msg")} for each in error.errors()[:20]
        ]
        first = details[0]
        field = ".".join(map(str, first["loc"] if isinstance(first["loc"], tuple) else ()))
        message = f"{field}: {first['msg']}"
        if field == "body" and "json" not in request.headers.get("content-type", ""):
            message = "body: send JSON, with the header Content-Type: application/json"
        return refusal_response(Refusal(422, message, details))
    if isinstance(error, UserError | InputError | Refusal):
        return refusal_response(refusal_of(error))
    # An HTTPException of FastAPI or Starlette; or a bug, which uvicorn logs.
    status = getattr(error, "status_code", 500)
    message = str(getattr(error, "detail", INTERNAL_ERROR))
    headers = getattr(error, "headers", None) or {}
    if status == 405:
        message = f"{request.method}: is not answered at this path; use {headers['Allow']}"
    response = refusal_response(Refusal(status, message))
    response.headers.update(headers)
    return response


def _add_server_paths(
    app: FastAPI, options: ServeOptions, engine: Engine, guard: Guard, name: str
) -> None:
    """Add the paths about the server itself."""

    @app.get("/v1/health/live", tags=["server"])
    async def live() -> Response:
        """Whether the server is running."""
        return Json({"status": "live"})

    @app.get("/v1/health/ready", tags=["server"])
    async def ready() -> Response:
        """Whether requests are accepted; 503 while the model is loaded."""
        engine.require_served()
        return Json({"status": "ready"})

    @app.get("/v1/metadata", tags=["server"])
    async def metadata() -> Response:
        """The model that is served, and limits."""
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
                    name: {"type": kind, "description": description}
                    for name, (kind, description) in FIELDS.items()
                },
            }
        )

    @app.get("/metrics", tags=["server"])
    async def metrics() -> Response:
        """Metrics for Prometheus."""
        return PlainTextResponse(
            metrics_text(engine, guard), media_type="text/plain; version=0.0.4"
        )


def metrics_text(engine: Engine, guard: Guard) -> str:
    """Metrics in the text format of Prometheus."""
    lines: list[str] = []

    def add(name: str, kind: str, description: str, values: dict[str, float]) -> None:
        lines.extend([f"# HELP evo2_{name} {description}", f"# TYPE evo2_{name} {kind}"])
        lines.extend(f"evo2_{name}{labels} {value}" for labels, value in values.items())

    counts = engine.counts
    add(
        "requests_total",
        "counter",
        "Responses by path and status.",
        {
            f'{{path="{path}",status="{status}"}}': number
            for (path, status), number in sorted(guard.responses.items())
        },
    )
    add(
        "request_seconds_total",
        "counter",
        "Total time of responses by path, in seconds.",
        {f'{{path="{path}"}}': round(value, 3) for path, value in sorted(guard.seconds.items())},
    )
    add("ready", "gauge", "Whether requests are accepted.", {"": int(engine.is_ready)})
    add("jobs", "gauge", "Requests waiting or in progress.", {"": engine.num_jobs})
    add("rows_growing", "gauge", "Sequences being generated.", {"": engine.num_running})
    add("tokens_total", "counter", "Sampled tokens.", {"": counts.tokens})
    add("pieces_total", "counter", "Steps of work other than generation.", {"": counts.pieces})
    ended = {f'{{how="{how}"}}': float(number) for how, number in counts.ended.items()}
    add("jobs_total", "counter", "Finished requests by outcome.", ended)
    return "\n".join(lines) + "\n"
