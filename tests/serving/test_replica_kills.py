"""A replica of each deployment killed while many ask: what was accepted is answered, with the sound that it would have been.

The ingress is another matter: who was connected to it is told at once, and asks again; the same seed is the same sound.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from outcome import sound

pytestmark = pytest.mark.soak
GENERATE = "/v1/audio/generate"
WISHES = [
    {"prompt": "a dog bark", "duration_s": 0.5, "steps": 10 + 5 * (seed % 5), "candidates": 2, "seed": seed}
    for seed in range(16)
]


@pytest.mark.parametrize("name", ["Condition", "Sample", "Vocode", "Rank"])
def test_a_replica_killed_under_load_loses_no_accepted_request(
    http: httpx.Client, kill_replica: Callable[[str], None], name: str
) -> None:
    undisturbed = [sound(http.post(GENERATE, json=wish)) for wish in WISHES]
    answered = threading.Semaphore(0)

    def ask(wish: dict[str, Any]) -> httpx.Response:
        answer = http.post(GENERATE, json=wish)
        answered.release()
        return answer

    with ThreadPoolExecutor(6) as pool:
        answers = [pool.submit(ask, wish) for wish in WISHES]
        for _ in range(3):  # the load is on
            assert answered.acquire(timeout=60)
        kill_replica(name)
    for before, answer in zip(undisturbed, answers, strict=True):
        after = sound(answer.result())
        assert after[:2] == before[:2]
        np.testing.assert_allclose(after[2], before[2], atol=2e-4)


def test_whoever_was_connected_to_a_killed_ingress_is_told_at_once(
    http: httpx.Client, kill_replica: Callable[[str], None]
) -> None:
    long = WISHES[0] | {"steps": 200, "candidates": 8}
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(http.post, GENERATE, json=long | {"seed": seed}) for seed in range(3)]
        time.sleep(1.0)
        began = time.monotonic()
        kill_replica("Ingress")
        assert [answer.result().status_code >= 500 for answer in answers] == [True] * 3
        assert time.monotonic() - began < 10
    end = time.monotonic() + 120
    while (again := http.post(GENERATE, json=WISHES[0])).status_code != 200:
        assert time.monotonic() < end, again.text
        time.sleep(0.5)
