"""The HTTP routes of generation, information and the page."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.middleware import Middleware
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from ray.serve.handle import DeploymentHandle

from foley_ray import __version__
from foley_ray.serving.batchroutes import batch_routes
from foley_ray.serving.batchstore import Store
from foley_ray.serving.generation import Generation, Sound
from foley_ray.serving.guard import Guard, answer, install_handlers
from foley_ray.serving.reference import describe
from foley_ray.serving.schemas import ErrorBody, GenerateBody, GenerateResponse, InfoResponse, SoundGenerationBody
from foley_ray.serving.settings import ServeSettings

PAGE = Path(__file__).with_name("page")
KEEP_ALIVE_S = 10.0
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 413, 422, 429, 500, 503, 504)
}
STORE_ERRORS: dict[int | str, dict[str, Any]] = {**ERRORS, 404: {"model": ErrorBody}}


def make_api(
    generation: Generation, settings: ServeSettings, keys: tuple[str, ...], batches: DeploymentHandle | None
) -> FastAPI:
    """The whole HTTP face as an ASGI application; without `batches` those routes do not exist."""
    api = FastAPIOffline(  # its /docs asks no other host for scripts
        redoc_url=None,
        favicon_url="page/icon.svg",
        title="foley_ray",
        version=__version__,
        description="Foley from text. The same request with the same seed gives the same sound.",
        middleware=[Middleware(Guard, keys=keys, open_access=settings.open_access, limits=settings.limits)],
    )
    install_handlers(api)
    api.include_router(_generation_routes(generation))
    if batches is not None and settings.data is not None:
        api.include_router(batch_routes(Store(settings.data), batches), responses=STORE_ERRORS)
    api.mount("/page", StaticFiles(directory=PAGE))
    describe(api, settings.limits, keys=bool(keys))
    return api


def _generation_routes(generation: Generation) -> APIRouter:
    router = APIRouter(tags=["generation"])

    @router.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html")

    @router.get(
        "/healthz", responses={503: {"model": ErrorBody}}, summary="Whether the service can be asked: 503 while it starts"
    )
    async def healthz() -> dict[str, str]:
        await generation.graph.require_started()
        return {"status": "ok", "model": generation.info.digest}

    @router.get("/v1/info", responses=ERRORS, summary="The model, its defaults and this service's limits")
    async def info() -> InfoResponse:
        return generation.about()

    @router.post(
        "/v1/audio/generate",
        response_model=GenerateResponse,
        responses={**ERRORS, 200: {"content": {"audio/*": {}, "text/event-stream": {}}}},
        summary="Generate clips, each the best of several candidates",
    )
    async def generate(body: GenerateBody, request: Request) -> Any:
        request_id = request.scope["state"]["request_id"]
        if body.response == "audio":
            return _audio(await generation.native_sound(body), generation)
        if body.stream:
            return await _events(generation, body, request_id)
        return await generation.native(body, request_id)

    @router.post(
        "/v1/sound-generation",
        response_class=Response,
        responses={**ERRORS, 200: {"content": {"audio/*": {}}}},
        summary="ElevenLabs' sound effects API",
    )
    async def sound_generation(
        body: SoundGenerationBody, output_format: Annotated[str, Query(max_length=32)] = "mp3_44100_128"
    ) -> Response:
        return _audio(await generation.sound_generation(body, output_format), generation)

    return router


def _audio(sound: Sound, generation: Generation) -> Response:
    best, warning = sound.clip.best, "; ".join(sound.clip.warnings)
    return Response(
        sound.data,
        media_type=sound.encoding.media_type,
        headers={
            "Content-Disposition": f'attachment; filename="foley_{sound.clip.request.seed}.{sound.encoding.suffix}"',
            "X-Foley-Seed": str(sound.clip.request.seed),
            "X-Foley-Candidate": str(best.index),
            "X-Foley-Score": f"{best.score:.6f}",
            **({} if math.isnan(best.novelty) else {"X-Foley-Novelty": f"{best.novelty:.2f}"}),
            "X-Foley-Passed": str(sound.clip.passed).lower(),
            "X-Foley-Model": generation.info.digest,
            # header values are Latin-1
            **({"X-Foley-Warning": warning.encode("ascii", "backslashreplace").decode()} if warning else {}),
        },
    )


async def _events(generation: Generation, body: GenerateBody, request_id: str) -> StreamingResponse:
    """Server-sent events. What fails before there is any progress is still an ordinary error, with its status."""
    progress: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
    task = asyncio.create_task(generation.native(body, request_id, lambda done, wanted: progress.put_nowait((done, wanted))))
    first = asyncio.create_task(progress.get())
    try:
        await asyncio.wait({task, first}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    except BaseException:
        task.cancel()
        first.cancel()
        raise

    async def events() -> AsyncIterator[str]:
        waiting = first
        try:
            while not task.done():
                await asyncio.wait({task, waiting}, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    done, wanted = waiting.result()
                    yield _event("progress", {"done": done, "total": wanted})
                    waiting = asyncio.create_task(progress.get())
                elif not task.done():
                    yield ": still at it\n\n"
            try:
                yield _event("result", task.result().model_dump(mode="json"))
            except Exception as error:
                yield _event("error", json.loads(bytes(answer(error, request_id).body)))
        finally:  # also when the client has gone: nobody waits for the rest
            task.cancel()
            waiting.cancel()

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
