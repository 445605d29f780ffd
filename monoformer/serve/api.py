"""The application: OpenAI's routes in front of one model, with errors, limits and figures.

    app = build_app(service)

Knows nothing of sockets (`server.py`). Invariant: every answer with a status of 400 or more is an error in OpenAI's
form, and the OpenAPI document at /openapi.json describes every route.
"""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from monoformer.serve.answers import ErrorAnswer, Model, Models
from monoformer.serve.chat import add_chat
from monoformer.serve.completions import add_completions
from monoformer.serve.errors import ApiError, add_errors
from monoformer.serve.guard import Guard
from monoformer.serve.images import add_images
from monoformer.serve.service import Service

SUMMARY = "One transformer that writes text and draws images, behind OpenAI's interface."

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request is refused: what is wrong with it."},
    "5XX": {"model": ErrorAnswer, "description": "The server is stopping, or failed."},
}


def build_app(service: Service) -> Any:
    """The ASGI application (FastAPI's) of one model."""
    from fastapi import APIRouter
    from fastapi_offline import (
        FastAPIOffline,  # /docs without a network: FastAPI's own page loads its scripts from a CDN
    )
    from starlette.middleware.cors import CORSMiddleware

    app = FastAPIOffline(title="MonoFormer", summary=SUMMARY, version="1", responses=ERRORS)
    add_errors(app)
    routes = APIRouter()
    add_chat(routes, service)
    add_completions(routes, service)
    add_images(routes, service)
    add_models(routes, service)
    add_health(routes, service)
    app.include_router(routes)
    if service.config.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=[*service.config.origins], allow_methods=["*"], allow_headers=["*"]
        )
    app.add_middleware(Guard, config=service.config, count=service.meters.answer)
    return app


def add_models(routes: Any, service: Service) -> None:
    """What is served."""
    model = Model(id=service.name, created=service.created)

    async def models() -> Models:
        """All models: the one that is served."""
        return Models(data=[model])

    routes.add_api_route("/v1/models", models, methods=["GET"], response_model=Models, tags=["models"])

    async def one(name: str) -> Model:
        """One of them."""
        if name != service.name:
            message = f"the model {name!r} is not served here; there is {service.name!r}"
            raise ApiError(message, status=404, parameter="model", code="model_not_found")
        return model

    routes.add_api_route("/v1/models/{name:path}", one, methods=["GET"], response_model=Model, tags=["models"])


def add_health(routes: Any, service: Service) -> None:
    """For what looks after the server."""
    batcher = service.batcher

    async def health() -> JSONResponse:
        """Whether the server works at all; 503 when it must be started again."""
        return _state("ok" if batcher.is_healthy else "the engine has failed", good=batcher.is_healthy)

    routes.add_api_route("/health", health, methods=["GET"], tags=["operation"])

    async def ready() -> JSONResponse:
        """Whether it would take a request now; 503 while it is full or stopping."""
        return _state("ready" if batcher.is_ready else "full or stopping", good=batcher.is_ready)

    routes.add_api_route("/ready", ready, methods=["GET"], tags=["operation"])

    async def metrics(request: Request) -> Response:
        """Figures for Prometheus."""
        return Response(service.meters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    routes.add_api_route("/metrics", metrics, methods=["GET"], response_class=Response, tags=["operation"])


def _state(status: str, *, good: bool) -> JSONResponse:
    return JSONResponse({"status": status}, 200 if good else 503)
