"""The running service, over HTTP."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile as sf

from foley_ray.clip import Clip, ClipRequest
from foley_ray.config import ClipSettings
from foley_ray.pipeline import Pipeline

GENERATE = "/v1/audio/generate"
WISH = {"prompt": "a dog bark", "duration_s": 0.5, "steps": 3, "candidates": 2, "seed": 7}


def wave_of(candidate: dict[str, Any]) -> np.ndarray:
    return np.asarray(sf.read(io.BytesIO(base64.b64decode(candidate["audio"])), dtype="float32")[0])


@pytest.fixture(scope="module")
def alone(tiny_model: Path) -> Callable[[dict[str, Any]], Clip]:
    """What the pipeline makes of a request body, in this process and by itself."""
    pipeline = Pipeline(tiny_model)

    def generate(wish: dict[str, Any]) -> Clip:
        settings = ClipSettings(**{name: value for name, value in wish.items() if name in ClipSettings.model_fields})
        return next(pipeline.generate([ClipRequest(wish["prompt"], wish["seed"], settings)]))

    return generate


def assert_same(answer: httpx.Response, clip: Clip) -> None:
    assert answer.status_code == 200, answer.text
    [made] = answer.json()["clips"]
    best = made["candidates"][0]
    assert (made["seed"], made["passed"], best["index"]) == (clip.request.seed, clip.passed, clip.best.index)
    np.testing.assert_allclose(wave_of(best), clip.wave_T, atol=1e-4)
    assert best["novelty"] == pytest.approx(clip.best.novelty, abs=0.02)
    scores = [item["score"] for item in sorted(made["candidates"], key=lambda item: item["index"])]
    np.testing.assert_allclose(scores, clip.scores, atol=1e-5)


def test_requests_that_share_every_batch_get_what_each_gets_from_the_pipeline_alone(http: httpx.Client, alone) -> None:
    wishes = [
        WISH,
        WISH | {"steps": 9, "guidance": 1.0, "prompt": "rain"},
        WISH | {"sampler": "ddim", "eta": 0.0, "duration_s": 0.8, "candidates": 1},
        WISH | {"threshold": 1.0, "max_redraws": 2, "seed": 8},
        WISH | {"seed": 9, "candidates": 5},
    ]
    with ThreadPoolExecutor(len(wishes)) as pool:
        answers = list(pool.map(lambda wish: http.post(GENERATE, json=wish), wishes))
    for wish, answer in zip(wishes, answers, strict=True):
        assert_same(answer, alone(wish))


def test_n_clips_count_their_seeds_up_and_a_missing_seed_is_told(http: httpx.Client) -> None:
    clips = http.post(GENERATE, json=WISH | {"n": 2}).json()["clips"]
    assert [clip["seed"] for clip in clips] == [7, 8]
    alone = http.post(GENERATE, json=WISH | {"seed": 8}).json()["clips"][0]["candidates"]
    for made, one in zip(clips[1]["candidates"], alone, strict=True):
        assert made | {"audio": ""} == one | {"audio": ""}
    np.testing.assert_allclose(wave_of(clips[1]["candidates"][0]), wave_of(alone[0]), atol=1e-4)  # the batch rounds
    assert [item["audio"] is None for item in clips[0]["candidates"]] == [False, True]
    drawn = http.post(GENERATE, json={key: value for key, value in WISH.items() if key != "seed"}).json()
    again = http.post(GENERATE, json=WISH | {"seed": drawn["clips"][0]["seed"]}).json()
    assert again["clips"] == drawn["clips"]


def test_progress_comes_as_events_and_the_result_last(http: httpx.Client) -> None:
    with http.stream("POST", GENERATE, json=WISH | {"steps": 150, "stream": True, "all_candidates": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [part.split("\n") for part in answer.read().decode().strip().split("\n\n") if not part.startswith(":")]
    names = [event[0].removeprefix("event: ") for event in events]
    data = [json.loads(event[1].removeprefix("data: ")) for event in events]
    assert names[-1] == "result"
    assert set(names[:-1]) == {"progress"}
    assert all(0 <= item["done"] <= item["total"] == 300 for item in data[:-1])
    assert [item["done"] for item in data[:-1]] == sorted(item["done"] for item in data[:-1])
    ranked = data[-1]["clips"][0]["candidates"]
    assert len(ranked) == 2
    assert ranked[0]["score"] >= ranked[1]["score"]
    assert all(len(wave_of(item)) == 11_025 for item in ranked)


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "mp3"])
def test_the_best_candidate_comes_as_a_sound_file(http: httpx.Client, name: str) -> None:
    answer = http.post(GENERATE, json=WISH | {"format": name, "response": "audio"})
    wave, rate = sf.read(io.BytesIO(answer.content))
    assert rate == 22_050
    assert len(wave) == pytest.approx(11_025, abs=1200)
    assert answer.headers["x-foley-seed"] == "7"
    assert -1 <= float(answer.headers["x-foley-score"]) <= 1


def test_a_prompt_that_the_model_was_never_taught_is_warned_of(http: httpx.Client) -> None:
    wish = WISH | {"prompt": "量子 teleportation"}
    [warning] = http.post(GENERATE, json=wish).json()["warnings"]
    assert "never taught: teleportation, 量子" in warning
    header = http.post(GENERATE, json=wish | {"response": "audio"}).headers["x-foley-warning"]
    assert header == warning.encode("ascii", "backslashreplace").decode()


def test_the_sound_effects_api_that_people_know(http: httpx.Client) -> None:
    body = {"text": "rain", "duration_seconds": 0.5, "prompt_influence": 0.3, "model_id": "eleven_text_to_sound_v2", "seed": 3}
    answer = http.post(
        "/v1/sound-generation", params={"output_format": "mp3_44100_128"}, json=body, headers={"xi-api-key": "any"}
    )
    assert answer.headers["content-type"] == "audio/mpeg"
    wave, rate = sf.read(io.BytesIO(answer.content))
    assert (rate, len(wave) / rate) == (44_100, pytest.approx(0.5, abs=0.06))
    pcm = http.post("/v1/sound-generation", params={"output_format": "pcm_16000"}, json=body)
    assert len(pcm.content) == 2 * 8_000
    assert pcm.headers["x-foley-seed"] == "3"
    native = http.post(GENERATE, json={"prompt": "rain", "duration_s": 0.5, "seed": 3, "response": "audio"})
    assert native.headers["x-foley-score"] == pcm.headers["x-foley-score"]


@pytest.mark.parametrize(
    ("body", "status", "param", "said"),
    [
        ({"prompt": "x", "steps": 0}, 422, "steps", "greater than or equal to 1, not 0"),
        ({"prompt": "x", "steps": 201}, 400, "steps", "steps 201 is more than 200, this service's limit"),
        ({"prompt": "x", "duration_s": 31}, 422, "duration_s", "less than or equal to 30, not 31"),
        ({"prompt": "x", "candidates": 17}, 400, "candidates", "17 is more than 16"),
        ({"prompt": "x", "sampler": "euler"}, 422, "sampler", "'ddim' or 'dpmpp-2m', not 'euler'"),
        ({"prompt": "x", "stps": 3}, 422, "stps", "not permitted"),
        ({"prompt": "x", "eta": 1.5}, 422, "eta", "less than or equal to 1, not 1.5"),
        (
            {"prompt": "x", "guided_above": 5, "guided_below": 1},
            422,
            None,
            "the body: guided_above 5 must not be more than guided_below 1",
        ),
        ({"prompt": "x", "max_redraws": 50}, 400, "max_redraws", "max_redraws 50 is more than 5, this service's limit"),
        ({"prompt": "x", "seed": -1}, 422, "seed", "not -1"),
        ({"prompt": "x", "n": 2, "response": "audio"}, 400, None, "response 'audio' is one sound"),
        ({"prompt": "  "}, 400, "prompt", "the prompt is empty"),
        ({"prompt": "bark " * 100}, 400, "prompt", "prompt has 100 tokens, more than 75"),
        ({"prompt": "b" * 1001}, 400, "prompt", "1001 characters, more than 1000"),
        ({}, 422, "prompt", "field required"),
        ([1], 400, None, "must be a JSON object"),
    ],
)
def test_a_bad_request_is_told_what_is_wrong_with_it(
    http: httpx.Client, body: Any, status: int, param: str | None, said: str
) -> None:
    for asked in (body, body | {"stream": True} if isinstance(body, dict) else body):
        answer = http.post(GENERATE, json=asked)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], error["type"]) == (status, param, "invalid_request_error"), error
        assert said in error["message"]
        assert len(error["message"]) < 250, "a traceback, or worse"


def test_bodies_that_are_no_json_or_too_large(http: httpx.Client) -> None:
    answer = http.post(GENERATE, content=b'{"prompt', headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert http.post(GENERATE, content=b"x" * 5000).status_code == 413
    answer = http.post("/v1/sound-generation", json={"text": "x"}, params={"output_format": "aac"})
    assert (answer.status_code, "formats are wav" in answer.text) == (400, True)


def test_health_is_503_until_every_stage_has_a_replica(service: str, tiny_model: Path) -> None:
    """The ingress, which holds no model, is there long before the others."""
    from ray import serve

    from foley_ray.serving.app import build_app
    from foley_ray.serving.deployments import STAGES
    from foley_ray.serving.settings import ServeSettings

    one = {"num_cpus": 0, "max_replicas": 1}
    settings = {"model": tiny_model, "ingress": one, **dict.fromkeys(STAGES, one)}
    app = build_app(ServeSettings.model_validate(settings))
    deploying = threading.Thread(target=lambda: serve.run(app, name="late", route_prefix="/late"))
    deploying.start()
    answers: list[httpx.Response] = []
    end = time.monotonic() + 120
    with httpx.Client(base_url=service, timeout=120) as client:
        while not answers or answers[-1].status_code != 200:
            assert time.monotonic() < end, [answer.status_code for answer in answers]
            answers.append(client.get("/late/healthz"))
            time.sleep(0.1)
    replicas = {name: found.replica_states for name, found in serve.status().applications["late"].deployments.items()}
    deploying.join()
    serve.delete("late")
    assert all(states.get("RUNNING") for states in replicas.values()), replicas
    starting = [answer for answer in answers if answer.status_code == 503]
    assert starting, [answer.status_code for answer in answers]
    assert starting[0].json()["error"]["message"].startswith("starting: no replica yet of ")
    assert starting[0].headers["retry-after"] == "5"


def test_what_is_around_the_api(http: httpx.Client) -> None:
    assert http.get("/healthz").json()["status"] == "ok"
    assert http.get("/healthz", headers={"X-Request-ID": "mine-1"}).headers.get_list("x-request-id") == ["mine-1"]
    assert "/v1/sound-generation" in http.get("/openapi.json").json()["paths"]
    assert http.get("/docs").status_code == 200
    page = http.get("/")
    assert "<title>foley_ray</title>" in page.text
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert http.get("/page/page.js").headers["content-type"].startswith("text/javascript")
    assert http.get("/page/%2e%2e/app.py").status_code == 404
    assert http.post("/v1/nothing").status_code == 404
    assert http.get(GENERATE).status_code == 405
    assert http.get("/v1/info").json()["defaults"]["duration_s"] == 1.0
    assert http.get("/v1/info", headers={"Origin": str(http.base_url)}).status_code == 200
    for header in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):  # as a page elsewhere would have it sent
        assert http.get("/v1/info", headers=header).json()["error"]["code"] == "other_site"


def under_way() -> int:
    """Clips in the sampling replicas."""
    from ray import serve

    replicas = serve.get_deployment_handle("Sample", "foley").broadcast("progress").results(timeout_s=30)
    return sum(len(clips) for clips in replicas)


def wait_until(what: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.05)


def test_a_client_that_goes_takes_its_candidates_out_of_the_engine(service: str, http: httpx.Client) -> None:
    for stream in (False, True):
        with httpx.Client(base_url=service, timeout=30) as leaving:
            asking = threading.Thread(
                target=_ignoring_errors, args=(leaving, WISH | {"steps": 200, "candidates": 16, "stream": stream})
            )
            asking.start()
            wait_until(lambda: under_way() == 1)
        asking.join()
        wait_until(lambda: under_way() == 0, timeout_s=5)
    assert http.post(GENERATE, json=WISH).status_code == 200


def _ignoring_errors(client: httpx.Client, body: dict[str, Any]) -> None:
    try:
        with client.stream("POST", GENERATE, json=body, timeout=2) as answer:
            answer.read()
    except httpx.HTTPError:
        pass


def test_more_than_may_wait_is_answered_429_at_once(http: httpx.Client) -> None:
    large = WISH | {"steps": 60, "candidates": 15}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: http.post(GENERATE, json=large | {"seed": seed}), range(8)))
    statuses = sorted(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 2, "40 candidates may be under way"
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["Retry-After"]) >= 1
            assert answer.json()["error"]["code"] == "overloaded"
            assert answer.elapsed.total_seconds() < 5


@pytest.mark.parametrize("name", ["Sample", "Vocode"])
def test_a_replica_that_dies_costs_time_but_no_request(http: httpx.Client, alone, kill_replica, name: str) -> None:
    wish = WISH | {"steps": 150, "candidates": 4, "seed": 21}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(http.post, GENERATE, json=wish)
        wait_until(lambda: under_way() == 1)
        kill_replica(name)
        assert_same(answer.result(), alone(wish))
