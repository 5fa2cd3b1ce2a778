"""Cut-up weights, on two processes. Accelerate offers FSDP on accelerators alone; here its own code is told to run on CPUs."""

import multiprocessing
import socket
from pathlib import Path

import pytest
import torch

from foley_ray.config import TrainConfig
from foley_ray.errors import ConfigError
from foley_ray.jobfile import TrainJob
from foley_ray.presets import tiny
from foley_ray.training.loop import Phase, Trainer
from foley_ray.training.run import Run
from foley_ray.training.tasks.vae import VaeTask

CONFIG = TrainConfig(steps=4, batch_size=4, accumulate=2, lr=1e-2, ema_decay=0.5, weight_decay=0.01)


class Regression(Phase):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.GroupNorm(4, 16), torch.nn.Linear(16, 1))

    def forward(self, batch, step, carry):
        return {"total": (self.net(batch["x"]) - batch["y"]).square().mean()}


def batches(rank: int, first: int, last: int) -> list[dict]:
    found = []
    for step in range(first, last):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(100 * step + rank))
        found.append({"x": x, "y": x.sum(1, keepdim=True), "sha256": ["a"] * 8})
    return found


def trainer(sharded: bool) -> Trainer:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    from foley_ray.training import sharding

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    if sharded:
        sharding.UNIT_WEIGHTS = 50  # a unit for each linear layer
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = sharding.fsdp_plugin()
    torch.manual_seed(0)
    phase = Regression()
    return Trainer({"model": phase}, torch.nn.ModuleDict({"net": phase.net}), CONFIG, accelerator)


def work(rank: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}  # fmt: skip
    found = {}
    for name, first, then in (("plain", False, False), ("sharded", True, True), ("mixed", True, False), ("back", False, True)):
        losses = []
        one = trainer(first)
        one.config = CONFIG.model_copy(update={"steps": 2, "log_every": 1})
        losses.append(one.train(batches(rank, 0, 2))["total"])
        state = one.state()
        if rank == 0:
            one.save(folder / name, state)
        torch.distributed.barrier()
        two = trainer(then)
        two.load(folder / name)
        pieces = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in two.averaged.parameters())
        losses.append(two.train(batches(rank, 2, 4))["total"])
        with two.averaged_weights() as averaged:
            weights = {key: value.clone() for key, value in averaged.state_dict().items()}
        found[name] = (losses, weights, pieces)
    if rank == 0:
        torch.save(found, folder / "found.pt")
    torch.distributed.destroy_process_group()


def test_a_sharded_run_is_the_plain_run_and_each_resumes_the_others_checkpoints(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(rank, port, tmp_path)) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    found = torch.load(tmp_path / "found.pt")
    losses, weights, whole = found.pop("plain")
    for name, (other_losses, other_weights, pieces) in found.items():
        assert other_losses == pytest.approx(losses, rel=1e-5), name
        for key, value in weights.items():
            assert torch.allclose(other_weights[key], value, atol=1e-6), f"{name}: {key}"
        assert pieces == whole if name == "mixed" else pieces < 0.6 * whole, f"{name} holds {pieces} of {whole} weights"


def test_sharding_is_refused_where_it_would_be_ignored(tmp_path: Path) -> None:
    job = TrainJob(task="diffusion", preset="tiny", data=tmp_path, out=tmp_path / "run", settings={"sharding": "full"})
    with pytest.raises(ConfigError, match="sharding full needs GPUs"):
        Run.of(job)
    settings = tiny().training["vae"].model_copy(update={"sharding": "full"})
    with pytest.raises(ConfigError, match="sharding full is for tasks diffusion and finetune"):
        VaeTask(tiny().model, settings, {})
