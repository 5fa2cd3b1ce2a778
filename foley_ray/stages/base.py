"""What a stage is: a plain class that loads its parts once and then maps a batch of columns to a batch with more columns.

It has never heard of Ray: the pipeline calls it directly, Serve wraps it in a deployment, Ray Data in an actor.
"""

from collections.abc import Sequence
from typing import ClassVar, Protocol

from foley_ray.columns import Batch, Column


class Stage(Protocol):
    """Columns it needs, columns it adds; input columns are carried through, and every row comes out once."""

    requires: ClassVar[Sequence[Column]]
    provides: ClassVar[Sequence[Column]]

    def __call__(self, batch: Batch) -> Batch:
        """The batch with `provides` added."""
        ...
