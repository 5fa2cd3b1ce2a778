"""The HTTP routes of files and batches, in the shapes of OpenAI's API."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, Query, UploadFile
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel
from ray.serve.handle import DeploymentHandle

from foley_ray.serving.batchstore import BatchObject, FileObject, Store
from foley_ray.serving.graph import named
from foley_ray.serving.schemas import ErrorBody

PAGE_SIZE = 100
JSON_LINES = "application/jsonl"


class BatchBody(BaseModel):
    """What to work off."""

    input_file_id: str
    endpoint: Literal["/v1/audio/generate"] = "/v1/audio/generate"
    completion_window: Literal["24h"] = "24h"
    metadata: dict[str, str] | None = None


def batch_routes(store: Store, runner: DeploymentHandle) -> APIRouter:
    """Reading and adding go to the disk; the runner is told to begin, and to stop."""
    router = APIRouter(tags=["batches"])

    @router.post("/v1/files", summary="Upload the input of a batch: one JSON request a line")
    async def add_file(file: UploadFile, purpose: Annotated[Literal["batch"], Form()]) -> FileObject:
        data = await file.read()
        return await asyncio.to_thread(store.add_file, [data], file.filename or "input.jsonl", purpose)

    @router.get("/v1/files")
    async def files() -> dict[str, Any]:
        return _listed(await asyncio.to_thread(store.files))

    @router.get("/v1/files/{file_id}")
    async def file(file_id: str) -> FileObject:
        return store.file(file_id)

    @router.get("/v1/files/{file_id}/content", response_class=Response, responses={200: {"content": {JSON_LINES: {}}}})
    async def content(file_id: str) -> FileResponse:
        return FileResponse(store.content(file_id), media_type=JSON_LINES)

    @router.delete("/v1/files/{file_id}", responses={409: {"model": ErrorBody}})
    async def delete_file(file_id: str) -> dict[str, Any]:
        await asyncio.to_thread(store.delete_file, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @router.post("/v1/batches", summary="Work off an uploaded file")
    async def add_batch(body: BatchBody) -> BatchObject:
        batch = await asyncio.to_thread(store.add_batch, body.endpoint, body.input_file_id, body.metadata)
        await runner.run.remote(batch.id)
        return batch

    @router.get("/v1/batches")
    async def batches(after: str | None = None, limit: Annotated[int, Query(ge=1, le=PAGE_SIZE)] = 20) -> dict[str, Any]:
        found = await asyncio.to_thread(store.batches)
        start = next((index + 1 for index, item in enumerate(found) if item.id == after), 0)
        return _listed(found[start : start + limit], has_more=len(found) > start + limit)

    @router.get("/v1/batches/{batch_id}")
    async def batch(batch_id: str) -> BatchObject:
        return store.batch(batch_id)

    @router.post("/v1/batches/{batch_id}/cancel", responses={409: {"model": ErrorBody}})
    async def cancel(batch_id: str) -> BatchObject:
        store.batch(batch_id)
        try:
            cancelled: BatchObject = await runner.cancel.remote(batch_id)
        except Exception as error:
            raise named(error) from None
        return cancelled

    return router


def _listed(items: list[Any], has_more: bool = False) -> dict[str, Any]:
    return {
        "object": "list",
        "data": [item.model_dump(mode="json") for item in items],
        "first_id": items[0].id if items else None,
        "last_id": items[-1].id if items else None,
        "has_more": has_more,
    }
