"""What goes over HTTP: bodies as pydantic models, which are also the OpenAPI page. Knows neither torch nor ray."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foley_ray.config import MAX_SEED, USUAL, ClipSettings
from foley_ray.errors import FoleyError
from foley_ray.serving.settings import Limits
from foley_ray.spec import MAX_DURATION_S, MIN_DURATION_S


class BadRequest(FoleyError):
    """A request that cannot be granted as it is, with the HTTP status, a code for programs, and the field it is about."""

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None, status: int = 400):
        super().__init__(message)
        self.code = code
        self.param = param
        self.status = status


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


def within(value: float, limit: float, param: str) -> None:
    """Raise BadRequest if a value is above what this service allows."""
    if value > limit:
        raise BadRequest(f"{param} {value:g} is more than {limit:g}, this service's limit", "limit_exceeded", param)


def usual(limits: Limits) -> dict[str, Any]:
    """What a clip is made with where a request does not say: the product's defaults, as far as this service allows them."""
    return {
        "candidates": min(USUAL.candidates, limits.candidates),
        "steps": min(USUAL.steps, limits.steps),
        "max_redraws": min(USUAL.max_redraws, limits.redraws),
    }


class GenerateBody(ClipSettings):
    """`n` clips of a prompt, each the best of `candidates`."""

    model_config = ConfigDict(
        strict=True,  # "false" is no boolean and true is no number: what a client did not mean is not generated
        json_schema_extra={"examples": [{"prompt": "a dog bark", "candidates": 3, "steps": 20, "guidance": 2.5, "seed": 7}]},
    )

    prompt: str = Field(min_length=1, description="what the sound should be, such as 'a dog bark'")
    n: int = Field(1, ge=1, description="clips, with the seeds seed, seed + 1, ...")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="the same request gives the same sound; drawn when absent")
    format: Literal["wav", "flac", "ogg", "mp3"] = "wav"
    response: Literal["json", "audio"] = Field("json", description="audio: the bytes of the best candidate, for n = 1")
    all_candidates: bool = Field(False, description="send the audio of every candidate, not only of the best")
    stream: bool = Field(False, description="server-sent events: `progress` as it goes, then `result` or `error`")

    def settings(self, limits: Limits) -> ClipSettings:
        """The part that says how a clip is made; what was not asked for is within what this service allows."""
        asked = {name: getattr(self, name) for name in ClipSettings.model_fields if name in self.model_fields_set}
        return ClipSettings(**usual(limits) | asked)

    def check(self, limits: Limits) -> None:
        """Raise BadRequest for what this service does not allow."""
        check_prompt(self.prompt, limits)
        within(self.n, limits.clips, "n")
        for name, limit in (("candidates", limits.candidates), ("steps", limits.steps), ("max_redraws", limits.redraws)):
            if name in self.model_fields_set:
                within(getattr(self, name), limit, name)
        if self.response == "audio" and (self.n > 1 or self.all_candidates or self.stream):
            raise BadRequest("response 'audio' is one sound: leave out n, all_candidates and stream, or ask for 'json'")


def check_prompt(prompt: str, limits: Limits) -> None:
    """Raise BadRequest for a blank or far too long prompt; how many tokens fit, the model says later."""
    if not prompt.strip():
        raise BadRequest("the prompt is empty: say what the sound should be, such as 'a dog bark'", "empty_prompt", "prompt")
    if len(prompt) > limits.prompt_chars:
        raise BadRequest(
            f"the prompt has {len(prompt)} characters, more than {limits.prompt_chars}, this service's limit",
            "limit_exceeded",
            "prompt",
        )


class CandidateBody(BaseModel):
    """One sound."""

    index: int
    score: float = Field(description="cosine between the CLAP embeddings of the sound and of the prompt")
    novelty: float | None = Field(
        None,
        description="distance to the nearest recording that the model learned from: below 1 it is nearer than real recordings "
        "are to each other, a near copy; null where the model does not know its recordings",
    )
    audio: str | None = Field(None, description="base64 of a sound file; absent where only the best was asked for")


class ClipBody(BaseModel):
    """One clip: its candidates, best first, and after all others those that are near copies."""

    seed: int
    passed: bool = Field(description="false: the best candidate is below the threshold, also after the allowed redraws")
    candidates: list[CandidateBody]


class GenerateResponse(BaseModel):
    """Clips, and what is needed to make them again."""

    id: str
    created: int
    model: str = Field(description="digest of the model's weights and settings")
    prompt: str
    settings: ClipSettings
    format: str
    media_type: str
    sample_rate_hz: int
    clips: list[ClipBody]
    warnings: list[str] = Field(
        [], description="such as: the prompt is far from all that the model was taught; a clip is a near copy"
    )


class SoundGenerationBody(BaseModel):
    """The body of ElevenLabs' sound effects API, and a seed. What it does not know is ignored, as there."""

    model_config = ConfigDict(strict=True)

    text: str = Field(min_length=1, description="what the sound should be")
    duration_seconds: float | None = Field(None, ge=MIN_DURATION_S, le=MAX_DURATION_S)
    prompt_influence: float | None = Field(None, ge=0, le=1, description="0.3 when absent; becomes a guidance of 1 to 6")
    loop: bool = False
    model_id: str | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)

    @property
    def guidance(self) -> float:
        """0.3, their default, is 2.5, ours."""
        return 1.0 + 5.0 * (0.3 if self.prompt_influence is None else self.prompt_influence)


class InfoResponse(BaseModel):
    """What runs here and what may be asked of it."""

    version: str
    model: str
    preset: str
    licences: list[str]
    sample_rate_hz: int
    defaults: ClipSettings
    limits: Limits


def error_body(message: str, kind: str, code: str, param: str | None = None) -> dict[str, Any]:
    """The one shape of errors."""
    return ErrorBody(error=ErrorDetail(message=message, type=kind, code=code, param=param)).model_dump()
