"""Every error that foley_ray raises on purpose, drawn as one tree.

    FoleyError
    ├── ConfigError          a preset, option or configuration key that does not exist or does not fit
    ├── DataError            a source or dataset that cannot be used
    │   ├── SourceError      the recordings to ingest: missing folder, column or audio
    │   └── DatasetError     an ingested dataset: missing, empty, or written for another model
    ├── ModelError           a folder that is no model, or whose parts do not fit each other
    ├── TrainingError        a run that must stop
    │   └── NonFiniteLoss    a loss that became NaN or infinite; the weights are as before the step
    ├── PromptError          a prompt or clip setting that cannot be generated
    ├── GenerationError      a candidate that failed while it was made
    ├── OutputError          a path that cannot be written
    └── ServiceError         the service cannot do this now, though nothing is wrong with what was asked
        ├── Overloaded       too much is waiting; says when to come back
        ├── ReplicaLost      a replica died, or its device, and the work with it; doing it again may well succeed
        ├── Unavailable      a part of the service has no replica at the moment
        └── TimedOut         the request took longer than the service allows

Each message names the thing, the value seen and what to do. The command line prints it on one line and exits with 2;
anything else that escapes is a defect of ours and keeps its traceback.
"""


class FoleyError(Exception):
    """Base of all errors raised on purpose: catch this one at the edge of a program."""


class ConfigError(FoleyError):
    """A preset, option or configuration key that does not exist or does not fit."""


class DataError(FoleyError):
    """A source or dataset that cannot be used."""


class SourceError(DataError):
    """The recordings to ingest cannot be read: missing folder, column or audio."""


class DatasetError(DataError):
    """An ingested dataset is missing, empty, or was written for another model."""


class ModelError(FoleyError):
    """A folder that is no model, or whose parts do not fit each other."""


class TrainingError(FoleyError):
    """A training run that must stop."""


class NonFiniteLoss(TrainingError):
    """A loss became NaN or infinite. Raised before the optimiser's step, so the weights are still good."""


class PromptError(FoleyError):
    """A prompt or clip setting that cannot be generated."""


class GenerationError(FoleyError):
    """A candidate failed while it was made; its neighbours are not touched."""


class OutputError(FoleyError):
    """A path that cannot be written."""


class ServiceError(FoleyError):
    """The service cannot do this now, though nothing is wrong with what was asked."""


class Overloaded(ServiceError):
    """Too much is waiting; `retry_after_s` says when to come back."""

    def __init__(self, message: str, retry_after_s: int = 1):
        super().__init__(message, retry_after_s)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return str(self.args[0])


class ReplicaLost(ServiceError):
    """A replica died, or its device, and the work with it; doing it again may well succeed."""


class Unavailable(ServiceError):
    """A part of the service has no replica at the moment."""


class TimedOut(ServiceError):
    """The request took longer than the service allows."""
