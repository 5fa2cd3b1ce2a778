"""What /openapi.json says of this service; that the service keeps to it is test_fuzz.py's."""

from fastapi import FastAPI

from foley_ray.serving.reference import describe
from foley_ray.serving.schemas import GenerateBody, SoundGenerationBody
from foley_ray.serving.settings import Limits


def api() -> FastAPI:
    api = FastAPI()

    @api.get("/healthz")
    @api.post("/v1/audio/generate")
    def native(body: GenerateBody) -> None: ...

    @api.post("/v1/sound-generation")
    def eleven(body: SoundGenerationBody) -> None: ...

    return api


def test_bounds_are_this_services_own_where_they_are_narrower() -> None:
    wide, narrow = api(), api()
    describe(wide, Limits(steps=5000), keys=False)
    describe(narrow, Limits(steps=30, candidates=2, clips=3, redraws=0, prompt_chars=99), keys=False)
    of = {name: page.openapi()["components"]["schemas"] for name, page in (("wide", wide), ("narrow", narrow))}
    assert of["wide"]["GenerateBody"]["properties"]["steps"]["maximum"] == 1000
    bounds = {name: field.get("maximum") for name, field in of["narrow"]["GenerateBody"]["properties"].items()}
    assert [bounds[name] for name in ("steps", "candidates", "n", "max_redraws", "guidance")] == [30, 2, 3, 0, 20]
    assert of["narrow"]["SoundGenerationBody"]["properties"]["text"]["maxLength"] == 99
    defaults = {name: field.get("default") for name, field in of["narrow"]["GenerateBody"]["properties"].items()}
    assert [defaults[name] for name in ("steps", "candidates", "max_redraws", "guidance")] == [20, 2, 0, 2.5]
    [[wide_example], [example]] = [of[name]["GenerateBody"]["examples"] for name in ("wide", "narrow")]
    assert (wide_example["candidates"], example["candidates"], example["seed"]) == (3, 2, 7)


def test_a_key_is_asked_for_where_there_are_keys_and_only_by_the_api() -> None:
    page = api()
    describe(page, Limits(), keys=True)
    paths = page.openapi()["paths"]
    assert paths["/v1/sound-generation"]["post"]["security"] == [{"xi-api-key": []}, {"bearer": []}]
    assert "security" not in paths["/healthz"]["get"]
