"""Each deployment scales by itself, by load: shown with the service a second time, beside the one of the other tests."""

import threading
import time
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.cluster
WISH = {"prompt": "a dog bark", "duration_s": 0.5, "steps": 60, "candidates": 2}


def test_sampling_grows_under_load_while_the_others_stay_and_shrinks_after(service: str, tiny_model: Path) -> None:
    from ray import serve

    from foley_ray.serving.app import build_app
    from foley_ray.serving.deployments import STAGES
    from foley_ray.serving.settings import ServeSettings

    soon = {"max_replicas": 2, "upscale_delay_s": 1, "downscale_delay_s": 2, "look_back_period_s": 2, "num_cpus": 0}
    given = {"model": tiny_model, "ingress": soon | {"target_ongoing_requests": 100}, **dict.fromkeys(STAGES, soon)}
    for name, target in {"condition": 32, "sample": 2, "vocode": 8, "rank": 8}.items():
        given[name] = soon | {"target_ongoing_requests": target}
    serve.run(build_app(ServeSettings.model_validate(given)), name="scaled", route_prefix="/scaled")
    done = threading.Event()

    def ask(seed: int) -> None:
        with httpx.Client(base_url=service, timeout=120) as client:
            while not done.is_set():
                answer = client.post("/scaled/v1/audio/generate", json=WISH | {"seed": seed})
                assert answer.status_code == 200, answer.text

    def running() -> dict[str, int]:
        deployments = serve.status().applications["scaled"].deployments
        return {name: deployment.replica_states.get("RUNNING", 0) for name, deployment in deployments.items()}

    one = dict.fromkeys(("Ingress", "Condition", "Sample", "Vocode", "Rank"), 1)
    clients = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for client in clients:
        client.start()
    seen = [running()]
    try:
        for wanted in (2, 1):
            end = time.monotonic() + 120
            while seen[-1]["Sample"] != wanted:
                assert time.monotonic() < end, seen
                time.sleep(0.5)
                seen.append(running())
            done.set()
    finally:
        done.set()
        for client in clients:
            client.join()
        serve.delete("scaled")
    assert all(counts | {"Sample": 1} == one for counts in seen), seen
