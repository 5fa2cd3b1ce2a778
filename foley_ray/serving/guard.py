"""What stands between the network and the routes: request ids, keys, body size, and one shape for everything that goes wrong.

Plain ASGI, so that a body is counted while it arrives and a stream of events is not gathered up.
"""

import hmac
import ipaddress
import logging
from collections.abc import Sequence
from contextlib import suppress
from urllib.parse import urlsplit
from uuid import uuid4

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foley_ray.errors import FoleyError, GenerationError, Overloaded, PromptError, ServiceError, TimedOut
from foley_ray.serving.schemas import BadRequest, error_body
from foley_ray.serving.settings import Limits

METHODS = ("DELETE", "GET", "PATCH", "POST", "PUT")
log = logging.getLogger("ray.serve")


class _TooLarge(Exception):
    pass


class Guard:
    """Answers 401, 403 and 413 itself; lets everything else through with its request id at hand."""

    def __init__(self, app: ASGIApp, keys: Sequence[str], open_access: bool, limits: Limits):
        self.app = app
        self.keys = [key.encode() for key in keys]
        self.open_access = open_access
        self.limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        # Serve's proxy gives every request an id, the client's own if it sent one, and sets it on the answer
        request_id = headers.get(b"x-request-id", b"").decode("latin-1")
        scope.setdefault("state", {})["request_id"] = request_id[:64] or uuid4().hex
        limit = self.limits.file_bytes if _path(scope) == "/v1/files" else self.limits.body_bytes
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise _TooLarge
            return message

        async def unless_too_large(message: Message) -> None:
            if seen <= limit:  # else it is what the application makes of a body that was cut off
                await send(message)

        refusal = self._refusal(scope, headers)
        declared = headers.get(b"content-length", b"0")
        too_large = JSONResponse(
            error_body(f"the body is larger than {limit} bytes, this service's limit", "invalid_request_error", "too_large"),
            413,
        )
        if refusal is not None:
            await refusal(scope, receive, send)
        elif declared.isdigit() and int(declared) > limit:
            await too_large(scope, receive, send)
        else:
            with suppress(_TooLarge):
                await self.app(scope, counted, unless_too_large)
            if seen > limit:
                await too_large(scope, receive, send)

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> JSONResponse | None:
        """A 401 for requests to the API that come without a key that is known; without keys, a 403 for those of other sites."""
        if not _path(scope).startswith("/v1/") or self.open_access:
            return None
        if not self.keys:
            if _from_this_machine(scope, headers):
                return _other_site(headers)
            message = "this service has no API keys, so it answers only the machine it runs on; set api_keys to open it"
        else:
            given = headers.get(b"xi-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            # every key is compared, and each in constant time: how long it takes says nothing about them
            if sum(hmac.compare_digest(key, given) for key in self.keys):
                return None
            message = "no valid API key: send one as `xi-api-key: KEY` or `Authorization: Bearer KEY`"
        return JSONResponse(error_body(message, "authentication_error", "invalid_api_key"), 401, {"WWW-Authenticate": "Bearer"})


def _path(scope: Scope) -> str:
    """The path as the routes see it: Serve may have put the whole service below a prefix, which must not open it."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


def _from_this_machine(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """A loopback client that does not speak for somebody else, as a proxy on this machine would."""
    if b"x-forwarded-for" in headers or b"forwarded" in headers or not scope.get("client"):
        return False
    try:
        return ipaddress.ip_address(scope["client"][0]).is_loopback
    except ValueError:
        return False


def _other_site(headers: dict[bytes, bytes]) -> JSONResponse | None:
    """A 403 for what a page of another site has a browser on this machine send: the address alone would make it ours.

    Such a page either names its own site as the origin, or has let its own name lead to this machine (DNS rebinding).
    """
    host, origin = headers.get(b"host", b"").decode("latin-1"), headers.get(b"origin", b"").decode("latin-1")
    if not _names_this_machine(host):
        message = f"only as 127.0.0.1 or localhost, not as Host {_short(host)}: ask it there"
    elif origin and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}"):
        message = f"programs and its own page, not pages of Origin {_short(origin)}: use its own page"
    else:
        return None
    message = f"this service has no API keys, so it answers {message}, or set api_keys to open it"
    return JSONResponse(error_body(message, "permission_error", "other_site"), 403)


def _names_this_machine(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def install_handlers(api: FastAPI) -> None:
    """Turn every exception into the one shape of errors; what is no error of ours is logged and not shown."""

    @api.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or None
        if first["type"] in ("json_invalid", "model_attributes_type"):
            message = "the body must be a JSON object, sent with Content-Type: application/json"
            return JSONResponse(error_body(message, "invalid_request_error", "invalid_json"), 400)
        # what is wrong with the body as a whole says which fields it means
        seen = "" if first["type"] == "missing" or place is None else f", not {_short(first.get('input'))}"
        rule = first["msg"].removeprefix("Value error, ")
        message = f"{place or 'the body'}: {rule[:1].lower()}{rule[1:]}{seen}"
        return JSONResponse(error_body(message, "invalid_request_error", first["type"], place), 422)

    @api.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
        message = f"{request.method} {request.url.path}: {str(error.detail).lower()}; see /docs"
        headers = dict(error.headers or {})
        if error.status_code == 405 and (methods := _allowed(request)):
            headers["Allow"] = ", ".join(methods)
        return JSONResponse(error_body(message, "invalid_request_error", code), error.status_code, headers)

    @api.exception_handler(FoleyError)
    async def ours(request: Request, error: FoleyError) -> JSONResponse:
        return answer(error)

    @api.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return answer(error, request.scope["state"]["request_id"])


def _allowed(request: Request) -> list[str]:
    """The methods of every route with this path; Starlette names those of the first alone."""
    routes = [route for route in request.app.router.routes if not isinstance(route, Mount)]

    def fits(method: str) -> bool:
        return any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)

    return [method for method in METHODS if fits(method)]


def answer(error: BaseException, request_id: str = "") -> JSONResponse:
    """An exception as an HTTP answer."""
    retry = {}
    if isinstance(error, BadRequest):
        status, kind, code, param = error.status, "invalid_request_error", error.code, error.param
    elif isinstance(error, PromptError):
        status, kind, code, param = 400, "invalid_request_error", "invalid_prompt", "prompt"
    elif isinstance(error, Overloaded):
        status, kind, code, param = 429, "rate_limit_error", "overloaded", None
        retry = {"Retry-After": str(error.retry_after_s)}
    elif isinstance(error, TimedOut):
        status, kind, code, param = 504, "server_error", "timed_out", None
    elif isinstance(error, ServiceError):
        status, kind, code, param = 503, "server_error", "unavailable", None
        retry = {"Retry-After": "5"}
    elif isinstance(error, GenerationError):
        status, kind, code, param = 500, "server_error", "generation_failed", None
    else:
        log.error("request %s failed", request_id, exc_info=error)
        message = f"something went wrong here; quote the request id {request_id} when you report it"
        return JSONResponse(error_body(message, "server_error", "internal_error"), 500)
    return JSONResponse(error_body(" ".join(str(error).split()), kind, code, param), status, retry)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
