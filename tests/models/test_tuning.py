import pytest
import torch
from torch.nn.functional import normalize

from foley_ray.config import TuningConfig
from foley_ray.errors import ModelError
from foley_ray.models.tuning import Tuning

CLASSES = ("dog_bark", "rain")


@pytest.mark.parametrize("config", [TuningConfig(kind="linear"), TuningConfig(kind="per_class", classes=CLASSES)])
def test_starts_as_the_identity_and_can_learn(config: TuningConfig, tmp_path) -> None:
    torch.manual_seed(0)
    tuning = Tuning(config, 16)
    text_BD = normalize(torch.randn(3, 16), dim=1)
    torch.testing.assert_close(tuning(text_BD), text_BD)
    wanted_BD = normalize(torch.randn(3, 16), dim=1)
    before = float((tuning(text_BD) * wanted_BD).sum())
    optimiser = torch.optim.SGD(tuning.parameters(), lr=1.0)
    for _ in range(20):
        optimiser.zero_grad()
        (-(tuning(text_BD) * wanted_BD).sum()).backward()
        optimiser.step()
    assert float((tuning(text_BD) * wanted_BD).sum()) > before + 0.5
    tuning.save_pretrained(tmp_path)
    assert torch.equal(Tuning.from_pretrained(tmp_path)(text_BD), tuning(text_BD))


def test_a_prompt_gets_the_residual_of_its_nearest_class() -> None:
    tuning = Tuning(TuningConfig(kind="per_class", classes=CLASSES), 4)
    tuning.set_anchors(torch.eye(4)[:2])
    with torch.no_grad():
        tuning.residual_KD[1] = torch.tensor([0.0, 0.0, 5.0, 0.0])
    near_rain = normalize(torch.tensor([[0.1, 0.9, 0.0, 0.0]]), dim=1)
    near_dog = normalize(torch.tensor([[0.9, 0.1, 0.0, 0.0]]), dim=1)
    assert float(tuning(near_rain)[0, 2]) > 0.9
    torch.testing.assert_close(tuning(near_dog), near_dog)


def test_per_class_without_classes_says_what_to_do() -> None:
    with pytest.raises(ModelError, match="needs its class names"):
        Tuning(TuningConfig(kind="per_class"), 4)
