"""Errors as OpenAI's clients know them: {"error": {"message", "type", "param", "code"}}, never a traceback."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from monoformer.generate.admission import TOO_LONG
from monoformer.serve.batcher import ClosingError, QueueFullError

UNIONS = ("body", "str", "constrained-str", "text", "image_url")
"""What pydantic puts between the names of fields."""

logger = logging.getLogger(__name__)

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
"""Types of errors by status; other ones of the client's are invalid_request_error, the server's server_error."""


class ApiError(Exception):
    """An answer other than the one hoped for."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        parameter: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`parameter` names the field that is wrong, `code` the kind of fault in one word."""
        super().__init__(message)
        self.message, self.status, self.parameter, self.code = message, status, parameter, code
        self.headers = headers

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.parameter, "code": self.code}}

    def line(self) -> str:
        """The answer as the last of server-sent events."""
        return f"data: {json.dumps(self.content)}\n\n"

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.content, self.status, headers=self.headers)


def answer_to(error: Exception) -> ApiError:
    """The answer to whatever was raised."""
    match error:
        case ApiError():
            return error
        case QueueFullError():
            headers = {"Retry-After": str(error.retry_after)}
            return ApiError(str(error), status=429, code="rate_limit_exceeded", headers=headers)
        case ClosingError():
            return ApiError(str(error), status=503, code="unavailable", headers={"Retry-After": "5"})
        case HTTPException():
            return ApiError(error.detail, status=error.status_code, headers=error.headers)
        case _:
            return ApiError("the server failed at this request", status=500)


def invalid(faults: Sequence[Any]) -> ApiError:
    """The answer to a body of the wrong form, by the most exact of pydantic's findings; it repeats nothing sent."""
    fault = max(faults, key=lambda fault: (len(fault["loc"]), not fault["type"].endswith("_type")))
    if fault["type"] == "json_invalid":
        return ApiError("the body is not valid JSON", code="invalid_json")
    if fault["type"] in ("model_attributes_type", "missing") and tuple(fault["loc"]) == ("body",):
        return ApiError("the body must be a JSON object, sent as Content-Type: application/json", code="invalid_json")
    place = [str(part) for part in fault["loc"] if part not in UNIONS and "[" not in str(part)]
    where, message = ".".join(place), str(fault["msg"]).removeprefix("Value error, ")
    field = fault.get("ctx", {}).get("field")  # of those that a body refuses as a whole
    parameter = ".".join([*place, field] if field else place) or None
    return ApiError(f"{where}: {message}" if where else message, parameter=parameter, code="invalid_value")


@contextmanager
def refusals() -> Iterator[None]:
    """Where a ValueError is the client's mistake."""
    try:
        yield
    except ValueError as error:
        message = str(error).removeprefix("generate.")
        raise ApiError(message, code="context_length_exceeded" if TOO_LONG in message else None) from error


def add_errors(app: Any) -> None:
    """Let the application answer every exception."""
    from fastapi.exceptions import RequestValidationError

    async def known(request: Request, error: Exception) -> JSONResponse:
        return answer_to(error).response()

    async def malformed(request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(list(error.errors())).response()

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return answer_to(error).response()

    for kind in (ApiError, QueueFullError, ClosingError, HTTPException):
        app.add_exception_handler(kind, known)
    app.add_exception_handler(RequestValidationError, malformed)
    app.add_exception_handler(Exception, unknown)
