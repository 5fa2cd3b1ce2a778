import itertools
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from foley_ray.config import TrainConfig
from foley_ray.errors import NonFiniteLoss, TrainingError
from foley_ray.training.loop import Hooks, Phase, Trainer, lr_scale

SETTINGS = TrainConfig(steps=12, batch_size=4, lr=0.05, ema_decay=0.5, log_every=4, checkpoint_every=5)


class Fit(Phase):
    """Linear regression with noise drawn inside the step, as diffusion draws it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 1)

    def forward(self, batch, step: int, carry: dict[str, Tensor]):
        error = self.net(batch["x"]) - batch["x"].sum(dim=1, keepdim=True) + 0.01 * torch.randn(len(batch["x"]), 1)
        carry["error"] = error.detach()
        return {"total": error.square().mean()}


class Second(Phase):
    """A phase that joins later and uses what the first one carried over."""

    starts_at = 6

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, batch, step: int, carry: dict[str, Tensor]):
        return {"total": (self.scale * carry["error"]).square().mean()}


def batches(start: int = 0):
    for index in itertools.count(start):
        yield {"x": torch.randn(4, 3, generator=torch.Generator().manual_seed(index)), "sha256": [f"row{index}"] * 4}


def trainer(config: TrainConfig = SETTINGS, phases=None) -> Trainer:
    phases = phases or {"model": Fit()}
    return Trainer(phases, next(iter(phases.values())), config, Accelerator(cpu=True))


def test_the_loss_falls_and_logs_and_checkpoints_come_when_due() -> None:
    logged: list = []
    saved: list = []
    hooks = Hooks(log=lambda step, metrics: logged.append((step, metrics)), checkpoint=lambda step, metrics: saved.append(step))
    trainer().train(batches(), hooks)
    assert [step for step, _ in logged] == [4, 8, 12]
    assert saved == [5, 10, 12]
    assert logged[-1][1]["total"] < 0.7 * logged[0][1]["total"]
    assert {"grad_norm", "lr", "samples_per_s", "data_wait", "left_s"} <= logged[0][1].keys()
    assert logged[-1][1]["left_s"] == 0


def test_a_gradient_that_is_not_finite_stops_before_the_step_too() -> None:
    class Edge(Fit):
        """The square root at zero: a finite loss with an infinite slope."""

        def forward(self, batch, step: int, carry: dict[str, Tensor]):
            return {"total": (self.net(batch["x"]) * 0).abs().sqrt().sum()}

    made = trainer(phases={"model": Edge()})
    before = made.bare["model"].net.weight.detach().clone()
    with pytest.raises(NonFiniteLoss, match="gradient is not finite at step 0"):
        made.train(batches())
    assert torch.equal(made.bare["model"].net.weight.detach(), before)


@pytest.mark.parametrize("stop", [1, 5, 7, 11])
def test_a_resumed_run_equals_the_unbroken_one(tmp_path: Path, stop: int) -> None:
    def two_phases():
        return {"first": Fit(), "second": Second()}

    unbroken = trainer(phases=two_phases())
    unbroken.train(batches())
    first = trainer(SETTINGS, phases=two_phases())
    first.config = SETTINGS.model_copy(update={"steps": stop})
    first.train(batches())
    first.save(tmp_path / "state")
    second = trainer(phases=two_phases())
    second.load(tmp_path / "state")
    assert second.step == stop
    second.train(batches(stop))
    for name, weight in unbroken.bare["first"].state_dict().items():
        torch.testing.assert_close(second.bare["first"].state_dict()[name], weight, rtol=0, atol=0)
    for ours, theirs in zip(second.ema.shadow_params, unbroken.ema.shadow_params, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_phase_joins_at_its_step() -> None:
    second = Second()
    made = trainer(phases={"first": Fit(), "second": second})
    made.config = SETTINGS.model_copy(update={"steps": 6})
    made.train(batches())
    assert float(second.scale.detach()) == 1.0
    made.config = SETTINGS
    made.train(batches(6))
    assert float(second.scale.detach()) != 1.0


def test_a_non_finite_loss_stops_before_the_step() -> None:
    def spoiled():
        for index, batch in enumerate(batches()):
            yield {**batch, "x": batch["x"] * float("nan")} if index == 3 else batch

    made = trainer()
    weights = []
    made_step = made.optimisers["model"].step
    made.optimisers["model"].step = lambda: (made_step(), weights.append(made.bare["model"].net.weight.detach().clone()))
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 3 .* rows row3"):
        made.train(spoiled())
    assert len(weights) == 3
    assert torch.equal(made.bare["model"].net.weight.detach(), weights[-1])


def test_data_that_ends_early_is_an_error_with_the_step() -> None:
    with pytest.raises(TrainingError, match="ended at step 3 of 12"):
        trainer().train(itertools.islice(batches(), 3))


def test_averaged_weights_are_lent_and_given_back() -> None:
    made = trainer()
    made.train(batches())
    live = made.bare["model"].net.weight.detach().clone()
    with made.averaged_weights():
        assert not torch.equal(made.bare["model"].net.weight, live)
    assert torch.equal(made.bare["model"].net.weight, live)


def test_torn_and_foreign_checkpoints_are_refused(tmp_path: Path) -> None:
    made = trainer()
    made.save(tmp_path / "whole")
    state = tmp_path / "whole" / "state.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[:-10])
    with pytest.raises(TrainingError, match=f"has {len(whole) - 10} bytes, not {len(whole)}"):
        trainer().load(tmp_path / "whole")
    state.write_bytes(whole)
    with pytest.raises(TrainingError, match="another task or preset"):
        trainer(phases={"other": Second()}).load(tmp_path / "whole")
    (tmp_path / "whole" / "manifest.json").unlink()
    with pytest.raises(TrainingError, match="incomplete"):
        trainer().load(tmp_path / "whole")


def test_learning_rate_warms_up_and_falls() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, final_lr_scale=0.1)
    scales = [lr_scale(step, config) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert scales[9] == scales[10] == 1.0
    assert scales[10:] == sorted(scales[10:], reverse=True)
    assert scales[-1] == pytest.approx(0.1, abs=0.01)
    assert lr_scale(99, TrainConfig(steps=100)) == 1.0
