import pytest

from foley_ray.data.cluster import ensure_ray


@pytest.fixture(scope="session")
def ray_local():
    ensure_ray(num_cpus=2)
