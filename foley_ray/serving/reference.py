"""The reference at /docs and /openapi.json: what routes.py says of itself, with this service's own limits and keys in it."""

from fastapi import FastAPI

from foley_ray.serving.schemas import usual
from foley_ray.serving.settings import Limits

KEYS = {
    "xi-api-key": {"type": "apiKey", "in": "header", "name": "xi-api-key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


def describe(api: FastAPI, limits: Limits, keys: bool) -> None:
    """Narrow the page's bounds, defaults and example to `limits`, and with `keys` say where a key goes.

    Once, after all routes are there.
    """
    page = api.openapi()  # FastAPI keeps what it made, so this is what it answers with
    schemas = page["components"]["schemas"]
    body = schemas["GenerateBody"]["properties"]
    for name, limit in {
        "n": limits.clips,
        "candidates": limits.candidates,
        "steps": limits.steps,
        "max_redraws": limits.redraws,
    }.items():
        body[name]["maximum"] = min(limit, body[name].get("maximum", limit))
    defaults = usual(limits)
    for name, value in defaults.items():
        body[name]["default"] = value
    native = schemas["GenerateBody"]
    native["examples"] = [
        example | {name: value for name, value in defaults.items() if name in example} for example in native["examples"]
    ]
    for text in (body["prompt"], schemas["SoundGenerationBody"]["properties"]["text"]):
        text["maxLength"] = limits.prompt_chars
    if keys:
        page["components"]["securitySchemes"] = KEYS
        for path, methods in page["paths"].items():
            if path.startswith("/v1/"):
                for operation in methods.values():
                    operation["security"] = [{name: []} for name in KEYS]
