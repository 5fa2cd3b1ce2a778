"""The guard and the shape of errors, around an application that does nothing else."""

import asyncio
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.middleware import Middleware

from foley_ray.errors import GenerationError, Overloaded, PromptError, ReplicaLost, TimedOut
from foley_ray.serving.guard import Guard, install_handlers
from foley_ray.serving.settings import Limits

KEYS = ("first-key", "second-key")


def ask(
    path: str = "/v1/thing",
    keys: tuple[str, ...] = KEYS,
    client: str = "127.0.0.1",
    open_access: bool = False,
    raising: Exception | None = None,
    host: str = "127.0.0.1:8000",
    **wish: Any,
) -> httpx.Response:
    api = FastAPI(middleware=[Middleware(Guard, keys=keys, open_access=open_access, limits=Limits(body_bytes=2000))])
    install_handlers(api)

    @api.post("/v1/json")
    async def json(body: dict[str, str]) -> None:
        raise AssertionError(body)

    @api.post("/v1/thing")
    @api.post("/free")
    async def thing(request: Request) -> dict[str, int]:
        if raising is not None:
            raise raising
        return {"bytes": len(await request.body())}

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(api, client=(client, 1234), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as http:
            return await http.post(path, **wish)

    return asyncio.run(send())


@pytest.mark.parametrize("header", [{"xi-api-key": "second-key"}, {"Authorization": "Bearer first-key"}])
def test_a_known_key_opens_and_so_does_a_path_outside_the_api(header: dict[str, str]) -> None:
    assert ask(headers=header, content=b"abc").json() == {"bytes": 3}
    assert ask("/free").status_code == 200


@pytest.mark.parametrize("header", [{}, {"xi-api-key": "first"}, {"Authorization": "Bearer "}, {"xi-api-key": "first-key2"}])
def test_no_other_key_does(header: dict[str, str]) -> None:
    answer = ask(headers=header)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_prefix_before_the_api_opens_nothing() -> None:
    api = FastAPI(middleware=[Middleware(Guard, keys=KEYS, open_access=False, limits=Limits())])
    reached = []

    @api.get("/v1/thing")
    def thing() -> None:
        reached.append(True)

    async def send(path: str) -> httpx.Response:
        transport = httpx.ASGITransport(api, root_path="/sounds")
        async with httpx.AsyncClient(transport=transport, base_url="http://foley") as http:
            return await http.get(path)

    for path in ("/sounds/v1/thing", "/v1/thing"):  # as Starlette has it, and as some servers do
        assert asyncio.run(send(path)).status_code == 401
    assert not reached


def test_without_keys_only_this_machine_is_answered() -> None:
    assert ask(keys=()).status_code == 200
    assert ask(keys=(), client="::1").status_code == 200
    assert ask(keys=(), client="192.0.2.1").status_code == 401
    assert ask(keys=(), headers={"X-Forwarded-For": "192.0.2.1"}).status_code == 401
    assert ask(keys=(), client="192.0.2.1", open_access=True).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "LOCALHOST:9000", "[::1]:8000", "127.0.1.1"])
def test_without_keys_the_page_and_programs_on_this_machine_are_answered(host: str) -> None:
    assert ask(keys=(), host=host).status_code == 200
    assert ask(keys=(), host=host, headers={"Origin": f"http://{host.lower()}"}).status_code == 200


@pytest.mark.parametrize(
    ("host", "origin", "said"),
    [
        ("evil.example:8000", None, "only as 127.0.0.1 or localhost, not as Host 'evil.example:8000': ask it there"),
        ("evil.example:8000", "http://evil.example:8000", "not as Host 'evil.example:8000'"),
        ("127.0.0.1.evil.example", None, "not as Host '127.0.0.1.evil.example'"),
        ("192.0.2.1", None, "not as Host '192.0.2.1'"),
        ("127.0.0.1:8000", "https://evil.example", "not pages of Origin 'https://evil.example': use its own page"),
        ("127.0.0.1:8000", "http://127.0.0.1:3000", "not pages of Origin 'http://127.0.0.1:3000'"),
        ("127.0.0.1:8000", "null", "not pages of Origin 'null'"),
    ],
)
def test_without_keys_no_page_of_another_site_is_answered(host: str, origin: str | None, said: str) -> None:
    headers = {} if origin is None else {"Origin": origin}
    answer = ask(keys=(), host=host, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "other_site")
    assert said in answer.json()["error"]["message"]
    assert "set api_keys to open it" in answer.json()["error"]["message"]
    assert ask("/free", keys=(), host=host, headers=headers).status_code == 200
    assert ask(host=host, headers=headers | {"xi-api-key": "first-key"}).status_code == 200, "whoever has a key may"
    assert ask(keys=(), host=host, headers=headers, open_access=True).status_code == 200


def test_a_large_body_is_refused_whether_it_says_so_or_not() -> None:
    async def chunks() -> Any:
        for _ in range(30):
            yield b"x" * 100

    for content in (b"x" * 3000, chunks()):
        answer = ask(headers={"xi-api-key": "first-key"}, content=content)
        assert answer.status_code == 413
        assert "larger than 2000 bytes" in answer.json()["error"]["message"]
    assert ask("/v1/json", keys=(), content=chunks(), headers={"Content-Type": "application/json"}).status_code == 413


@pytest.mark.parametrize(
    ("raising", "status", "code", "retry"),
    [
        (PromptError("empty"), 400, "invalid_prompt", None),
        (Overloaded("full", retry_after_s=3), 429, "overloaded", "3"),
        (ReplicaLost("gone"), 503, "unavailable", "5"),
        (TimedOut("late"), 504, "timed_out", None),
        (GenerationError("NaN"), 500, "generation_failed", None),
    ],
)
def test_our_errors_have_a_status_and_one_shape(raising: Exception, status: int, code: str, retry: str | None) -> None:
    answer = ask(keys=(), raising=raising)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "code", "param"}
    assert (error["code"], error["message"]) == (code, str(raising))
    assert answer.headers.get("Retry-After") == retry


def test_a_defect_shows_a_request_id_and_nothing_of_itself() -> None:
    answer = ask(keys=(), raising=RuntimeError("secret path /home/x"), headers={"X-Request-ID": "abc-1"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "abc-1" in answer.json()["error"]["message"]


def test_what_is_not_there_is_said_in_the_same_shape() -> None:
    answer = ask("/v1/nothing", keys=())
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_another_method_is_told_of_all_that_a_path_has() -> None:
    api = FastAPI()
    install_handlers(api)

    @api.get("/v1/things")
    @api.post("/v1/things")
    def things() -> None: ...

    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://foley") as http:
            return await http.put("/v1/things")

    answer = asyncio.run(send())
    assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, POST")
