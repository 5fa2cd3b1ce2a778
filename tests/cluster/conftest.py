"""What the tests of a running cluster share."""

from collections.abc import Iterator

import pytest
from rayhead import Head, started


@pytest.fixture(scope="package")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A `ray start --head` that asks for a token, with six cores, as it believes."""
    with started(tmp_path_factory.mktemp("home")) as running:
        yield running
