"""Work in shares on the cluster."""

from collections.abc import Iterator

import pytest

from foley_ray.data.cluster import run_shares
from foley_ray.errors import ConfigError, ModelError


@pytest.mark.usefixtures("ray_local")
def test_shares_bring_everything_and_what_they_raise() -> None:
    def every_third(share: int) -> Iterator[int]:
        yield from range(share, 8, 3)

    assert sorted(run_shares(every_third, workers=3)) == list(range(8))

    def fails(share: int) -> Iterator[int]:
        yield share
        raise ModelError("no such part")

    with pytest.raises(ModelError, match="no such part"):
        list(run_shares(fails, workers=2))


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("wish", [{"cpus_per_worker": 64}, {"gpu": True}])
def test_a_worker_that_fits_no_node_is_refused(wish: dict) -> None:
    def nothing(share: int) -> Iterator[int]:
        yield share

    with pytest.raises(ConfigError, match=r"but the nodes have 2 cores and 0 GPUs; lower cpus_per_worker, set gpu: false"):
        list(run_shares(nothing, workers=1, **wish))
