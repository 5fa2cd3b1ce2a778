from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from foley_ray.errors import ConfigError
from foley_ray.serving.app import read_keys
from foley_ray.serving.local import CPU_SHARES, GPU_SHARES, local_settings
from foley_ray.serving.settings import ServeSettings

CLUSTER = Path(__file__).parents[2] / "cluster"


def test_the_cluster_yaml_is_one_that_serve_and_the_builder_take() -> None:
    schema = ServeDeploySchema.model_validate(yaml.safe_load((CLUSTER / "serve.yaml").read_text()))
    [app] = schema.applications
    assert app.import_path == "foley_ray.serving.app:build_app"
    settings = ServeSettings.model_validate(app.args)
    assert schema.http_options.request_timeout_s > settings.limits.request_s
    assert settings.sample.device == "cuda"
    assert settings.condition.device == "cpu"
    assert settings.condition.max_ongoing_requests == 64, "what is left out keeps the deployment's own default"


@pytest.mark.parametrize("name", ["ingress", "condition", "sample", "vocode", "rank"])
def test_every_deployment_scales_and_bounds_what_waits(name: str) -> None:
    options = getattr(ServeSettings(), name).options()
    AutoscalingConfig.model_validate(options["autoscaling_config"])
    assert options["max_queued_requests"] > 0
    assert options["backpressure_config"]["status_code"] == 429


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"sample": {"max_rows": 1}}, "greater than or equal to 2"),
        ({"sample": {"replicas": 1}}, "Extra inputs"),
        ({"vocode": {"min_replicas": 3}}, "min_replicas 3 is above max_replicas 2"),
        ({"rank": {"max_ongoing_requests": 4}}, "max_batch_requests 8 can never fill up"),
    ],
)
def test_what_cannot_work_is_refused(args: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ServeSettings.model_validate(args)


def test_one_machine_is_enough_for_foley_serve() -> None:
    assert sum(CPU_SHARES.values()) == 2.0
    assert sum(GPU_SHARES.values()) == pytest.approx(1.0)
    settings = local_settings(None, None, gpu=False, cores=4)
    assert (settings.sample.torch_threads, settings.rank.torch_threads) == (4, 1)
    assert settings.sample.max_replicas == 1
    assert local_settings(None, None, gpu=True).sample.device == "cuda"


def test_keys_come_from_a_file_that_is_never_silently_empty(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nalpha\n\nbeta\n")
    assert read_keys(ServeSettings(api_keys_file=path, api_keys=("x",))) == ("x", "alpha", "beta")
    path.write_text("# none yet\n")
    with pytest.raises(ConfigError, match="holds no API key"):
        read_keys(ServeSettings(api_keys_file=path))
    with pytest.raises(ConfigError, match="cannot read API keys"):
        read_keys(ServeSettings(api_keys_file=tmp_path / "nothing"))
