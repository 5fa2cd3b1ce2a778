"""Every number of the service, typed: the `args` of the application in a Serve YAML. Imports neither torch nor ray.

What is left out keeps its default, so a YAML names only what differs:

    applications:
      - import_path: foley_ray.serving.app:build_app
        args: {model: /models/foley, sample: {num_gpus: 1, max_replicas: 8}}
"""

from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from foley_ray.settings import Settings

ONE_HEAP = {"env_vars": {"MALLOC_ARENA_MAX": "1"}}
"""By itself glibc gives threads heaps of their own, and waves that pass from one to another leave holes in them: a vocoding
replica grew by 13.5 MiB in 1,000 requests, and does not with one heap (bench_serve.py --what memory, 2026-11-28)."""


class DeploymentSettings(Settings):
    """How one deployment scales, what a replica of it takes, and how much may wait for it."""

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    target_ongoing_requests: float = Field(2.0, gt=0, description="per replica; the autoscaler keeps to it")
    upscale_delay_s: float = Field(10.0, ge=0)
    downscale_delay_s: float = Field(300.0, ge=0)
    look_back_period_s: float = Field(30.0, gt=0, description="load is averaged over this long before scaling")
    num_cpus: float = Field(1.0, ge=0)
    num_gpus: float = Field(0.0, ge=0, description="a fraction shares a GPU; 0 runs on the CPU")
    max_ongoing_requests: int = Field(16, ge=1, description="per replica")
    max_queued_requests: int = Field(256, ge=1, description="waiting for a replica; one more is answered 429")
    health_check_period_s: float = Field(10.0, gt=0)
    graceful_shutdown_s: float = Field(120.0, ge=0, description="what a replica that goes may take to finish its requests")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}")
        return self

    def options(self) -> dict[str, Any]:
        """As `Deployment.options` takes them."""
        return {
            "autoscaling_config": {
                "min_replicas": self.min_replicas,
                "max_replicas": self.max_replicas,
                "target_ongoing_requests": self.target_ongoing_requests,
                "upscale_delay_s": self.upscale_delay_s,
                "downscale_delay_s": self.downscale_delay_s,
                "look_back_period_s": self.look_back_period_s,
                "metrics_interval_s": min(10.0, self.look_back_period_s / 2),
            },
            "ray_actor_options": {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, "runtime_env": ONE_HEAP},
            "max_ongoing_requests": self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "health_check_period_s": self.health_check_period_s,
            "graceful_shutdown_timeout_s": self.graceful_shutdown_s,
            "backpressure_config": {"status_code": 429, "retry_after_s": 1},
        }


class StageSettings(DeploymentSettings):
    """A deployment around a stage."""

    threads: int = Field(0, ge=0, description="CPU threads of a replica's torch; 0 follows num_cpus")

    @property
    def device(self) -> str:
        """Where the stage runs."""
        return "cuda" if self.num_gpus else "cpu"

    @property
    def torch_threads(self) -> int:
        """CPU threads, at least one."""
        return self.threads or max(1, int(self.num_cpus))


class BatchedSettings(StageSettings):
    """A stage that takes requests which wait at the same time through the model together."""

    max_batch_requests: int = Field(8, ge=1, description="requests that share a pass")
    batch_wait_s: float = Field(
        0.0, ge=0, description="what a request waits for others even when the stage is idle; while it works, they gather anyway"
    )

    @model_validator(mode="after")
    def _check_batch(self) -> Self:
        if self.max_batch_requests > self.max_ongoing_requests:
            raise ValueError(
                f"max_batch_requests {self.max_batch_requests} can never fill up: max_ongoing_requests is "
                f"{self.max_ongoing_requests}"
            )
        return self


class ConditionSettings(BatchedSettings):
    """prompt -> condition: a few milliseconds a prompt."""

    num_cpus: float = Field(0.25, ge=0)
    max_ongoing_requests: int = Field(64, ge=1)
    target_ongoing_requests: float = Field(32.0, gt=0)
    max_batch_requests: int = Field(32, ge=1)


class SampleSettings(StageSettings):
    """condition -> latent: nearly all of the work, so the one that grows."""

    num_cpus: float = Field(1.0, ge=0)
    max_replicas: int = Field(4, ge=1)
    max_ongoing_requests: int = Field(16, ge=1, description="clips under way in one step engine")
    target_ongoing_requests: float = Field(4.0, gt=0)
    max_rows: int = Field(16, ge=2, description="UNet rows of a step; a guided candidate takes two")


class VocodeSettings(BatchedSettings):
    """latent -> wave."""

    num_cpus: float = Field(0.5, ge=0)
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: float = Field(8.0, gt=0)
    max_rows: int = Field(8, ge=1, description="latents decoded at once")


class RankSettings(BatchedSettings):
    """wave -> score and novelty."""

    num_cpus: float = Field(0.25, ge=0)
    max_replicas: int = Field(2, ge=1)
    target_ongoing_requests: float = Field(8.0, gt=0)


class IngressSettings(DeploymentSettings):
    """HTTP: holds connections and no model."""

    num_cpus: float = Field(0.0, ge=0)
    max_replicas: int = Field(2, ge=1)
    max_ongoing_requests: int = Field(256, ge=1)
    target_ongoing_requests: float = Field(128.0, gt=0)


class Limits(Settings):
    """What one request may ask for; beyond it stands a 4xx that names the limit."""

    body_bytes: int = Field(1 << 20, ge=1024)
    file_bytes: int = Field(64 << 20, ge=1024, description="an uploaded batch file")
    batch_lines: int = Field(50_000, ge=1)
    prompt_chars: int = Field(1000, ge=1)
    clips: int = Field(8, ge=1, description="n")
    candidates: int = Field(16, ge=1)
    steps: int = Field(200, ge=1)
    redraws: int = Field(5, ge=0, description="max_redraws")
    request_s: float = Field(
        600.0, gt=0, description="a request that takes longer is taken out and answered 504; not so a batch's"
    )
    pending_candidates: int = Field(256, ge=1, description="under way or waiting, per ingress replica; more is answered 429")


class ServeSettings(Settings):
    """The whole service. `foley_ray.serving.app:build_app` takes this as the `args` of a Serve YAML."""

    model: Path | None = Field(None, description="model folder; the shipped one when absent")
    api_keys: tuple[str, ...] = Field((), description="with none, only this machine itself is answered")
    api_keys_file: Path | None = Field(None, description="one key a line; keeps them out of the YAML")
    open_access: bool = Field(False, description="answer anybody without a key: for a private network, or a proxy that checks")
    data: Path | None = Field(None, description="folder that holds files and batches, on disk all nodes see; none: no batches")
    batch_concurrency: int = Field(2, ge=1, description="batch lines under way at once, beside interactive requests")
    retries: int = Field(2, ge=0, description="how often a clip is started again when a replica dies with it")
    recovery_s: float = Field(180.0, ge=0, description="how long a request waits for a stage that has no replica left")
    limits: Limits = Limits()
    ingress: IngressSettings = IngressSettings()
    condition: ConditionSettings = ConditionSettings()
    sample: SampleSettings = SampleSettings()
    vocode: VocodeSettings = VocodeSettings()
    rank: RankSettings = RankSettings()
