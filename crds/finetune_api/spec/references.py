"""Every place that a spec names: its field, what is found or left there, and the stages that go there.

What a pod mounts, which folders `finetune run` asks for, which jobs a job waits for and whose fault an error of a file
is: all of it follows from this one list. It opens nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from finetune_api import uris
from finetune_api.reasons import Reason
from finetune_api.spec.credentials import Auth
from finetune_api.spec.dataset import Dataset, Source, SplitName
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.methods import START_FROM
from finetune_api.stages import PREPARE, PUBLISH, STAGES, StageName


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
    revision: str | None = None
    """Of the hub."""
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
    yield to_model(spec)
    yield from (reference for _, _, reference in to_data(spec.dataset))
    yield from to_adapters(spec)
    stages = (PREPARE, PUBLISH)
    yield Reference("spec.output", spec.output.uri, stages, Reason.OUTPUT_NOT_WRITABLE, is_written=True)


def to_model(spec: FineTuneJobSpec) -> Reference:
    """To the base model."""
    model = spec.model
    return Reference("spec.model", model.uri, STAGES, Reason.MODEL_UNAVAILABLE, model.auth, model.revision)


def to_data(dataset: Dataset) -> Iterator[tuple[SplitName, Source, Reference]]:
    """To each source of data, with its split; training data first."""
    lists: dict[SplitName, tuple[str, list[Source]]] = {
        "train": ("train", dataset.train),
        "validation": ("validation.sources", dataset.validation.sources or []),
        "test": ("test.sources", dataset.test.sources or []),
    }
    for split, (name, sources) in lists.items():
        for index, source in enumerate(sources):
            field = f"spec.dataset.{name}[{index}]"
            failure = Reason.DATASET_UNAVAILABLE
            yield split, source, Reference(field, source.uri, (PREPARE,), failure, source.auth, source.revision)


def to_adapters(spec: FineTuneJobSpec) -> Iterator[Reference]:
    """To each stored adapter that training starts from."""
    for index, adapter in enumerate(spec.method.options.adapters):
        field, failure = f"{START_FROM}.adapters[{index}]", Reason.INPUT_UNAVAILABLE
        yield Reference(field, adapter.uri, (PREPARE,), failure, adapter.auth, adapter.revision)
