"""Every batch comes to its end, whatever happens to its input, its disk, its time or its runner.

The runner is here in this process, so that a test can let it die; the stages are those of the running service.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_batches import GENERATE, WISH, begin, ended, lines, until

from foley_ray.clip import ClipRequest
from foley_ray.config import ClipSettings
from foley_ray.errors import TimedOut
from foley_ray.serving.batchrun import BatchRunner
from foley_ray.serving.batchstore import ENDED, BatchObject, Counts, Status, Store
from foley_ray.serving.deployments import STAGES
from foley_ray.serving.graph import Graph
from foley_ray.serving.schemas import BadRequest
from foley_ray.serving.settings import Limits, ServeSettings

LONG = WISH | {"steps": 200, "candidates": 8}
OUTCOME = {"custom_id": "clip-0", "response": {"status_code": 200, "body": {}}, "error": None}


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> ServeSettings:
    return ServeSettings(model=tiny_model, data=tmp_path, limits=Limits(request_s=0.05))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def stages(service: str) -> dict[str, Any]:
    from ray import serve

    return {name: serve.get_deployment_handle(kind.__name__, "foley") for name, kind in STAGES.items()}


def added(store: Store, data: bytes, **changes: Any) -> BatchObject:
    batch = store.add_batch(GENERATE, store.add_file([data], "wishes.jsonl", "batch").id, None)
    batch = batch.model_copy(update=changes)
    store.save(batch)
    return batch


def under_way(store: Store, data: bytes, status: Status = "in_progress", **changes: Any) -> BatchObject:
    """A batch of which the first line is made."""
    batch = added(
        store, data, in_progress_at=1, status=status, request_counts=Counts(total=data.count(b"custom_id")), **changes
    )
    store.add_result(batch, 0, OUTCOME)
    return batch


def worked_off(
    runner: Callable[[], BatchRunner],
    batch: BatchObject,
    meanwhile: Callable[[BatchRunner], Awaitable[None]] | None = None,
    timeout_s: float = 60,
) -> BatchObject:
    """The batch, after a runner that starts now has brought it to its end."""

    async def work() -> BatchObject:
        started = runner()
        if meanwhile:
            await meanwhile(started)
        async with asyncio.timeout(timeout_s):
            while (found := started.store.batch(batch.id)).status not in ENDED or batch.id in started.running:
                await asyncio.sleep(0.05)
        return found

    return asyncio.run(work())


@pytest.fixture
def runner(settings: ServeSettings, stages: dict[str, Any]) -> Callable[[], BatchRunner]:
    return lambda: BatchRunner(settings, **stages)


def output(store: Store, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(line) for line in store.content(file_id).read_text().splitlines()]


def test_a_file_that_is_no_utf8_fails_and_says_so_and_marked_utf8_is_read(http: httpx.Client) -> None:
    batch = until(http, begin(http, lines(WISH).decode().encode("utf-16")), ended, timeout_s=10)
    assert batch["status"] == "failed"
    [error] = batch["errors"]["data"]
    assert (error["code"], error["param"]) == ("invalid_encoding", "input_file_id")
    assert "no UTF-8 text, as its byte 0xff shows; save it as UTF-8" in error["message"]
    assert until(http, begin(http, b"\xef\xbb\xbf" + lines(WISH)), ended)["request_counts"]["completed"] == 1


def test_the_input_of_a_batch_stays_until_the_batch_has_ended(http: httpx.Client) -> None:
    batch_id = begin(http, lines(*(LONG | {"seed": seed} for seed in range(10))))
    file = f"/v1/files/{http.get(f'/v1/batches/{batch_id}').json()['input_file_id']}"
    answer = http.delete(file)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "file_in_use")
    assert f"is the input of batch {batch_id}" in answer.json()["error"]["message"]
    http.post(f"/v1/batches/{batch_id}/cancel")
    assert until(http, batch_id, ended, timeout_s=20)["status"] == "cancelled"
    assert http.delete(file).status_code == 200


@pytest.mark.parametrize("status", ["in_progress", "cancelling"])
def test_a_batch_whose_input_is_gone_fails_and_hands_out_what_is_made(
    runner: Callable[[], BatchRunner], store: Store, status: Status
) -> None:
    batch = under_way(store, lines(WISH, WISH), status)
    store.content(batch.input_file_id).with_name("file.json").unlink()
    found = worked_off(runner, batch)
    assert found.status == "failed"
    assert found.errors is not None
    assert found.errors["data"][0]["message"] == f"no file '{batch.input_file_id}' here"
    assert output(store, found.output_file_id) == [OUTCOME]


def test_a_batch_with_a_torn_outcome_fails_as_well(runner: Callable[[], BatchRunner], store: Store, tmp_path: Path) -> None:
    batch = under_way(store, lines(WISH))
    (tmp_path / "batches" / batch.id / "results" / "000000.json").write_text("")
    found = worked_off(runner, batch)
    assert (found.status, found.output_file_id) == ("failed", None)
    assert found.errors is not None
    assert found.errors["data"][0]["code"] == "internal_error"


def test_a_batch_cancelled_before_its_lines_were_checked_has_no_rows_for_them(
    runner: Callable[[], BatchRunner], store: Store
) -> None:
    found = worked_off(runner, added(store, b"{", status="cancelling"))
    assert (found.status, found.output_file_id, found.error_file_id) == ("cancelled", None, None)


def test_a_disk_that_fails_for_a_while_costs_time_and_no_batch(
    runner: Callable[[], BatchRunner], store: Store, tmp_path: Path
) -> None:
    batch = added(store, lines(WISH, WISH | {"seed": 8}))
    results = tmp_path / "batches" / batch.id / "results"
    results.rmdir()
    results.write_text("no folder, so nothing can be written into it")

    async def repair(runner: BatchRunner) -> None:
        await asyncio.sleep(3)
        assert store.batch(batch.id).status == "in_progress"
        results.unlink()

    found = worked_off(runner, batch, repair)
    assert (found.status, found.request_counts) == ("completed", Counts(total=2, completed=2))


def test_a_disk_that_fails_for_good_ends_the_batch_with_its_time(
    runner: Callable[[], BatchRunner], store: Store, tmp_path: Path
) -> None:
    """What cannot be read is no reason to leave out what is made already."""
    batch = under_way(store, lines(WISH, WISH), expires_at=int(time.time()) + 2)
    content = store.content(batch.input_file_id)
    content.unlink()
    content.mkdir()
    found = worked_off(runner, batch)
    assert found.status == "failed"
    assert output(store, found.output_file_id) == [OUTCOME]


def test_a_batch_has_until_it_expires_however_often_its_runner_starts(runner: Callable[[], BatchRunner], store: Store) -> None:
    now = int(time.time())
    data = lines(*(LONG | {"seed": seed} for seed in range(20)))
    over = under_way(store, data, created_at=now - 86_400, expires_at=now - 1)
    found = worked_off(runner, over, timeout_s=5)
    assert found.status == "expired"
    assert output(store, found.output_file_id) == [OUTCOME]
    unmade = output(store, found.error_file_id)
    assert [row["custom_id"] for row in unmade] == [f"clip-{index}" for index in range(1, 20)]
    assert {row["error"]["code"] for row in unmade} == {"batch_expired"}
    nearly = added(store, data, created_at=now - 86_400, expires_at=int(time.time()) + 3)
    found = worked_off(runner, nearly, timeout_s=15)
    assert (found.status, found.request_counts.total) == ("expired", 20)
    assert found.request_counts.completed < 20
    assert found.expired_at is not None
    assert found.expired_at >= nearly.expires_at


def test_a_line_may_take_longer_than_an_interactive_request(
    runner: Callable[[], BatchRunner], store: Store, settings: ServeSettings, stages: dict[str, Any]
) -> None:
    async def ask() -> None:
        request = ClipRequest("a dog bark", 7, ClipSettings(duration_s=0.5, steps=150))
        await Graph(settings, **stages, request_s=settings.limits.request_s).clips([request])

    with pytest.raises(TimedOut, match=r"not finished within 0\.05 s, the service's limit.*/v1/batches"):
        asyncio.run(ask())
    found = worked_off(runner, added(store, lines(WISH | {"steps": 150})))
    assert found.request_counts == Counts(total=1, completed=1)


def test_outcomes_are_kept_once_also_where_the_runner_died_before_it_removed_them(
    runner: Callable[[], BatchRunner], store: Store, tmp_path: Path
) -> None:
    batch = added(store, lines(WISH, WISH | {"prompt": " "}))
    found = worked_off(runner, batch)
    results = tmp_path / "batches" / batch.id / "results"
    assert not results.exists()
    made, refused = output(store, found.output_file_id), output(store, found.error_file_id)
    assert [row["custom_id"] for row in made + refused] == ["clip-0", "clip-1"]
    for outcomes, state in ((made + refused, "finalizing"), ([], found.status)):
        # died before the last save, and after it
        for line, outcome in enumerate(outcomes or made):
            store.add_result(batch, line, outcome)
        store.save(found.model_copy(update={"status": state}))
        again = worked_off(runner, batch)
        assert (again.status, again.request_counts) == ("completed", found.request_counts)
        assert output(store, again.output_file_id) == made
        assert output(store, again.error_file_id) == refused
        assert not results.exists()


def test_cancelling_twice_is_cancelling_once_and_an_ending_batch_is_left_to_end(
    runner: Callable[[], BatchRunner], store: Store
) -> None:
    batch = added(store, lines(*(LONG | {"seed": seed} for seed in range(10))))

    async def cancel(runner: BatchRunner) -> None:
        while store.batch(batch.id).status != "in_progress":
            await asyncio.sleep(0.05)
        first, second = await asyncio.gather(runner.cancel(batch.id), runner.cancel(batch.id))
        assert (first.status, second.status) == ("cancelling", "cancelling")

    assert worked_off(runner, batch, cancel).status == "cancelled"
    large = under_way(store, lines(WISH), status="finalizing")

    async def too_late(runner: BatchRunner) -> None:
        while large.id not in runner.ending:
            await asyncio.sleep(0)
        with pytest.raises(BadRequest, match="is ending already and cannot be cancelled"):
            await runner.cancel(large.id)

    assert worked_off(runner, large, too_late).status == "completed"
