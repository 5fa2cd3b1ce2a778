"""From a request body to the bytes of an answer: what the HTTP routes and the batch runner have in common."""

import asyncio
import base64
import math
import secrets
import time
from dataclasses import dataclass

from foley_ray import __version__
from foley_ray.audio.encode import Encoding, encode
from foley_ray.audio.wave import resample
from foley_ray.checkpoint import ModelInfo
from foley_ray.clip import OUTPUT_RATE_HZ, Candidate, Clip, ClipRequest
from foley_ray.config import MAX_SEED, ClipSettings
from foley_ray.errors import PromptError
from foley_ray.serving.graph import Graph, OnProgress
from foley_ray.serving.schemas import (
    BadRequest,
    CandidateBody,
    ClipBody,
    GenerateBody,
    GenerateResponse,
    InfoResponse,
    SoundGenerationBody,
    check_prompt,
    usual,
)
from foley_ray.serving.settings import Limits
from foley_ray.spec import MAX_DURATION_S


@dataclass(frozen=True)
class Sound:
    """The bytes of one sound file, and how to make it again."""

    data: bytes
    encoding: Encoding
    clip: Clip


@dataclass(frozen=True)
class Generation:
    """Requests in, encoded sounds out."""

    graph: Graph
    info: ModelInfo
    limits: Limits

    async def native(self, body: GenerateBody, request_id: str, on_progress: OnProgress | None = None) -> GenerateResponse:
        """Raises BadRequest, and what Graph.clips raises."""
        body.check(self.limits)
        seed = secrets.randbelow(MAX_SEED) if body.seed is None else body.seed
        settings = body.settings(self.limits)
        requests = [ClipRequest(body.prompt, (seed + index) % (MAX_SEED + 1), settings) for index in range(body.n)]
        clips = await self.graph.clips(requests, body.all_candidates, on_progress)
        encoding = Encoding(body.format)
        return GenerateResponse(
            id=request_id,
            created=int(time.time()),
            model=self.info.digest,
            prompt=body.prompt,
            settings=settings,
            format=body.format,
            media_type=encoding.media_type,
            sample_rate_hz=OUTPUT_RATE_HZ,
            clips=[
                ClipBody(
                    seed=clip.request.seed,
                    passed=clip.passed,
                    candidates=[
                        CandidateBody(
                            index=item.index,
                            score=round(item.score, 6),
                            novelty=None if math.isnan(item.novelty) else round(item.novelty, 2),
                            audio=await self._base64(item, encoding),
                        )
                        for item in clip.candidates
                    ],
                )
                for clip in clips
            ],
            warnings=list(dict.fromkeys(warning for clip in clips for warning in clip.warnings)),
        )

    async def sound(self, request: ClipRequest, encoding: Encoding) -> Sound:
        """One clip's best candidate as a file. Raises what Graph.clips raises."""
        [clip] = await self.graph.clips([request])
        return Sound(await asyncio.to_thread(self._encoded, clip.candidates[0], encoding), encoding, clip)

    async def native_sound(self, body: GenerateBody) -> Sound:
        """`response: audio` of the native route."""
        body.check(self.limits)
        seed = secrets.randbelow(MAX_SEED) if body.seed is None else body.seed
        return await self.sound(ClipRequest(body.prompt, seed, body.settings(self.limits)), Encoding(body.format))

    async def sound_generation(self, body: SoundGenerationBody, output_format: str) -> Sound:
        """ElevenLabs' route: best of the default number of candidates."""
        check_prompt(body.text, self.limits)
        try:
            encoding = Encoding.parse(output_format)
        except PromptError as error:
            raise BadRequest(str(error), param="output_format") from None
        settings = ClipSettings(
            duration_s=body.duration_seconds or self.info.model.audio.clip_s,
            guidance=body.guidance,
            loop=body.loop,
            **usual(self.limits),
        )
        seed = secrets.randbelow(MAX_SEED) if body.seed is None else body.seed
        return await self.sound(ClipRequest(body.text, seed, settings), encoding)

    def about(self) -> InfoResponse:
        """What runs here."""
        return InfoResponse(
            version=__version__,
            model=self.info.digest,
            preset=self.info.preset,
            licences=self.info.licences,
            sample_rate_hz=OUTPUT_RATE_HZ,
            defaults=ClipSettings(duration_s=min(self.info.model.audio.clip_s, MAX_DURATION_S), **usual(self.limits)),
            limits=self.limits,
        )

    async def _base64(self, candidate: Candidate, encoding: Encoding) -> str | None:
        if candidate.wave_T is None:
            return None
        return base64.b64encode(await asyncio.to_thread(self._encoded, candidate, encoding)).decode()

    def _encoded(self, candidate: Candidate, encoding: Encoding) -> bytes:
        if candidate.wave_T is None:
            raise ValueError(f"candidate {candidate.index} came without its wave")
        wave_T = candidate.wave_T
        rate = self.info.model.audio.sample_rate_hz
        if encoding.sample_rate_hz is None:  # as `foley generate` writes it, so that the files are the same
            wave_T, rate = resample(wave_T, rate, OUTPUT_RATE_HZ), OUTPUT_RATE_HZ
        return encode(wave_T, rate, encoding)
