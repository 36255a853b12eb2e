"""Every place that a spec names: its field, what is found or left there, and the stages that go there.

What a pod mounts, which folders `finetune run` asks for, which jobs a job waits for and whose fault an error of a file
is: all of it follows from this one list. It opens nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api import uris
from finetune_api.methods import START_FROM
from finetune_api.reasons import Reason
from finetune_api.sources import Auth
from finetune_api.spec import Dataset, FineTuneJobSpec, Source, SplitName
from finetune_api.stages import STAGES, StageName


@dataclass(frozen=True)
class Reference:
    """One place."""

    field: str
    """As in `spec.dataset.train[0]`: the object that has `uri`."""
    uri: str
    stages: tuple[StageName, ...]
    """Those that read or write it."""
    failure: Reason
    """That of a job which does not get there."""
    auth: Auth | None = None
    """Credentials; what needs them is fetched by `prepare`."""
    is_written: bool = False

    @property
    def root(self) -> str | None:
        """What has to be mounted to get there, as `pvc://claim`; None for what lies on the network or this machine."""
        place = uris.parse(self.uri)
        return place.root if place.scheme in ("pvc", "configmap") else None

    @property
    def secret(self) -> str | None:
        """The Secret that has to be mounted to get there, as `secret://name`."""
        return f"secret://{self.auth.secret_name}" if self.auth else None


def references(spec: FineTuneJobSpec) -> Iterator[Reference]:
    """All of them, in the order of the fields."""
    yield Reference("spec.model", spec.model.uri, STAGES, Reason.MODEL_UNAVAILABLE, spec.model.auth)
    for _, field, source in data_sources(spec.dataset):
        yield Reference(field, source.uri, ("prepare",), Reason.DATASET_UNAVAILABLE, source.auth)
    for index, adapter in enumerate(spec.method.options.adapters):
        field = f"{START_FROM}.adapters[{index}]"
        yield Reference(field, adapter.uri, ("prepare",), Reason.INPUT_UNAVAILABLE, adapter.auth)
    yield Reference("spec.output", spec.output.uri, ("prepare", "publish"), Reason.OUTPUT_NOT_WRITABLE, is_written=True)


def data_sources(dataset: Dataset) -> Iterator[tuple[SplitName, str, Source]]:
    """Each source with its split and its field, training data first."""
    for index, source in enumerate(dataset.train):
        yield "train", f"spec.dataset.train[{index}]", source
    for index, source in enumerate(dataset.validation.sources or []):
        yield "validation", f"spec.dataset.validation.sources[{index}]", source
    for index, source in enumerate(dataset.test.sources or []):
        yield "test", f"spec.dataset.test.sources[{index}]", source
