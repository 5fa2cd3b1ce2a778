"""A batch on its way between two replicas: it stays where it was made until the next stage fetches it from there.

Serve would also take one call's response as the next call's argument. But when the first call ends in the loss of its node,
Serve's router takes that error for one of the replica that it is about to ask, and asks again without end (Ray 2.60). So who
asks sees each stage finish, and holds no more of the batch than where it is.
"""

from dataclasses import dataclass

import ray

from foley_ray.columns import Batch


@dataclass(frozen=True)
class Parcel:
    """Where a batch is. It is lost with the replica that packed it."""

    content: "ray.ObjectRef[Batch]"


def pack(batch: Batch) -> Parcel:
    """The batch in this node's object store."""
    return Parcel(ray.put(batch))


async def unpack(parcel: Parcel) -> Batch:
    """The batch, from wherever it is. Raises ray.exceptions.ObjectLostError if its replica or node is gone."""
    batch: Batch = await parcel.content
    return batch
