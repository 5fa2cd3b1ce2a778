"""What a Prometheus that scrapes this node would see of the service."""

import re
import time

import httpx
import ray

WISH = {"prompt": "a dog bark", "duration_s": 0.5, "steps": 3, "candidates": 2, "seed": 7, "threshold": 1.0, "max_redraws": 1}
SAID = re.compile(r"^ray_(foley_\w+?)(?:\{.*\})? ([0-9.e+-]+)$", re.MULTILINE)


def scraped() -> dict[str, float]:
    [node] = ray.nodes()
    text = httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", timeout=30).text
    found: dict[str, float] = {}
    for name, value in SAID.findall(text):
        found[name] = found.get(name, 0.0) + float(value)
    return found


def test_clips_steps_batches_and_redraws_are_counted(http: httpx.Client) -> None:
    before = scraped()
    answer = http.post("/v1/audio/generate", json=WISH)
    assert answer.json()["clips"][0]["passed"] is False
    end = time.monotonic() + 60
    while True:  # Ray's processes report every few seconds
        grown = {name: value - before.get(name, 0.0) for name, value in scraped().items()}
        if grown.get("foley_redraws_total", 0) >= 1 and grown.get("foley_stage_seconds_count", 0) >= 6:
            break
        assert time.monotonic() < end, grown
        time.sleep(0.5)
    assert grown["foley_sample_steps_total"] >= 6
    # what earlier tests did may be reported late, so at least
    assert grown["foley_clip_seconds_count"] >= 1
    assert grown["foley_clip_score_count"] >= 1
    assert grown["foley_stage_batch_requests_count"] >= 6
