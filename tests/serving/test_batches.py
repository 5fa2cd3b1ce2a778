"""Files and batches: on disk, over HTTP, and across deaths."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from test_service import wave_of

from foley_ray.errors import OutputError
from foley_ray.serving.batchstore import Store
from foley_ray.serving.schemas import BadRequest

GENERATE = "/v1/audio/generate"
WISH = {"prompt": "a dog bark", "duration_s": 0.5, "steps": 3, "candidates": 2, "seed": 7}


def lines(*bodies: dict[str, Any], **changes: Any) -> bytes:
    rows = [
        {"custom_id": f"clip-{index}", "method": "POST", "url": GENERATE, "body": body} | changes
        for index, body in enumerate(bodies)
    ]
    return "\n".join(json.dumps(row) for row in rows).encode()


def upload(http: httpx.Client, data: bytes, name: str = "wishes.jsonl") -> str:
    answer = http.post("/v1/files", files={"file": (name, data)}, data={"purpose": "batch"})
    assert answer.status_code == 200, answer.text
    assert (answer.json()["filename"], answer.json()["bytes"]) == (name, len(data))
    return str(answer.json()["id"])


def begin(http: httpx.Client, data: bytes) -> str:
    body = {"input_file_id": upload(http, data), "endpoint": GENERATE, "completion_window": "24h", "metadata": {"night": "1"}}
    answer = http.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["metadata"] == {"night": "1"}
    return str(answer.json()["id"])


def until(http: httpx.Client, batch_id: str, what: Callable[[dict[str, Any]], bool], timeout_s: float = 120) -> dict[str, Any]:
    end = time.monotonic() + timeout_s
    while True:
        batch: dict[str, Any] = http.get(f"/v1/batches/{batch_id}").json()
        if what(batch):
            return batch
        assert time.monotonic() < end, batch
        time.sleep(0.1)


def ended(batch: dict[str, Any]) -> bool:
    return batch["status"] in ("completed", "failed", "cancelled", "expired")


def rows_of(http: httpx.Client, file_id: str) -> dict[str, dict[str, Any]]:
    rows = [json.loads(line) for line in http.get(f"/v1/files/{file_id}/content").text.splitlines()]
    return {row["custom_id"]: row for row in rows}


def test_a_batch_gives_each_line_what_it_would_get_by_itself_and_bad_lines_their_error(http: httpx.Client) -> None:
    batch_id = begin(
        http, lines(WISH, WISH | {"steps": 0}, WISH | {"seed": 8, "n": 2}, WISH | {"prompt": " "}, WISH | {"stream": True})
    )
    batch = until(http, batch_id, ended)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 5, "completed": 2, "failed": 3}
    assert batch["created_at"] <= batch["in_progress_at"] <= batch["finalizing_at"] <= batch["completed_at"]
    good, bad = rows_of(http, batch["output_file_id"]), rows_of(http, batch["error_file_id"])
    [made], [alone] = good["clip-0"]["response"]["body"]["clips"], http.post(GENERATE, json=WISH).json()["clips"]
    for one, other in zip(made.pop("candidates"), alone.pop("candidates"), strict=True):
        if one["audio"]:
            np.testing.assert_allclose(wave_of(one), wave_of(other), atol=1e-4)  # the batch that lines share rounds
        assert one | {"audio": ""} == other | {"audio": ""}
    assert made == alone
    assert len(good["clip-2"]["response"]["body"]["clips"]) == 2
    assert {name: row["response"]["status_code"] for name, row in bad.items()} == {"clip-1": 422, "clip-3": 400, "clip-4": 400}
    assert "steps = 0" in bad["clip-1"]["response"]["body"]["error"]["message"]
    assert batch_id in [item["id"] for item in http.get("/v1/batches").json()["data"]]


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"{", "invalid_json_line", "Invalid JSON"),
        (b"\n", "empty_file", "holds no line"),
        (lines(WISH, WISH, custom_id="same"), "duplicate_custom_id", "'same' is there twice"),
        (lines(WISH, url="/v1/chat"), "mismatched_endpoint", "the batch is for POST /v1/audio/generate"),
    ],
)
def test_a_file_that_is_no_batch_fails_before_anything_is_made(http: httpx.Client, data: bytes, code: str, said: str) -> None:
    batch = until(http, begin(http, data), ended)
    assert batch["status"] == "failed"
    error = batch["errors"]["data"][0]
    assert error["code"] == code
    assert said in error["message"]
    assert batch["output_file_id"] is None


def test_a_cancelled_batch_hands_out_what_is_finished(http: httpx.Client) -> None:
    batch_id = begin(http, lines(WISH, *(WISH | {"steps": 200, "candidates": 8, "seed": seed} for seed in range(30))))
    until(http, batch_id, lambda batch: batch["request_counts"]["completed"] >= 1)
    assert http.post(f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelling"
    batch = until(http, batch_id, ended, timeout_s=10)
    assert batch["status"] == "cancelled"
    finished = rows_of(http, batch["output_file_id"])
    assert "clip-0" in finished
    assert len(finished) == batch["request_counts"]["completed"] < 31
    unmade = rows_of(http, batch["error_file_id"])
    assert finished.keys() | unmade.keys() == {f"clip-{index}" for index in range(31)}
    assert {(row["response"], row["error"]["code"]) for row in unmade.values()} == {(None, "batch_cancelled")}
    answer = http.post(f"/v1/batches/{batch_id}/cancel")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_running")


def test_a_batch_survives_the_death_of_its_runner_and_makes_nothing_twice(
    http: httpx.Client, data_folder: Path, kill_replica: Callable[[str], None]
) -> None:
    batch_id = begin(http, lines(*(WISH | {"steps": 60, "seed": seed} for seed in range(12))))
    until(http, batch_id, lambda batch: batch["request_counts"]["completed"] >= 3)
    results = data_folder / "batches" / batch_id / "results"
    before = [json.loads(path.read_text()) for path in results.glob("[0-9]*.json")]
    kill_replica("BatchRunner")
    batch = until(http, batch_id, ended)
    assert batch["request_counts"] == {"total": 12, "completed": 12, "failed": 0}
    after = rows_of(http, batch["output_file_id"])
    assert len(after) == 12
    for row in before:  # with the second in which it was made: the runner takes longer than that to come back
        assert after[row["custom_id"]] == row
    assert not results.exists(), "what the output file holds is not kept twice"


def test_files_are_listed_read_and_deleted_and_names_are_never_paths(http: httpx.Client, data_folder: Path) -> None:
    file_id = upload(http, b"{}", "../../etc/passwd")
    assert http.get(f"/v1/files/{file_id}/content").content == b"{}"
    assert file_id in [item["id"] for item in http.get("/v1/files").json()["data"]]
    assert http.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    for path in (f"/v1/files/{file_id}", "/v1/files/..", "/v1/files/file-..%2f..", "/v1/batches/batch_0", "/v1/batches/%2e%2e"):
        assert http.get(path).status_code == 404
    assert http.post("/v1/batches", json={"input_file_id": file_id, "endpoint": GENERATE}).status_code == 404
    answer = http.post("/v1/files", files={"file": ("a", b"x")}, data={"purpose": "fine-tune"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (422, "purpose")


def test_a_store_keeps_what_it_is_given(tmp_path: Path) -> None:
    store = Store(tmp_path)
    file = store.add_file([b"one\n", b"\n", b"two\n"], "f.jsonl", "batch")
    batch = store.add_batch(GENERATE, file.id, None)
    assert list(store.lines(batch)) == ["one\n", "two\n"]
    store.add_result(batch, 1, {"a": 1})
    again = Store(tmp_path)
    assert again.batch(batch.id) == batch
    assert again.finished_lines(batch) == {1}
    assert list(again.results(batch, {1})) == [{"a": 1}]
    with pytest.raises(BadRequest, match="no file 'file-x' here"):
        store.file("file-x")
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="cannot keep files and batches"):
        Store(tmp_path / "taken")
