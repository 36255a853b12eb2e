"""One preparation of a dataset: what it needs, and what follows from the job and its model together."""

from collections.abc import Callable
from dataclasses import dataclass

from finetune_api.run import Run
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_trainer.data.record_types import RECORD_TYPES, RecordType
from finetune_trainer.pretrained.base_model import BaseModel
from finetune_trainer.pretrained.initial_adapter import Start
from finetune_trainer.pretrained.tokenizer import ModelTokenizer
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.workspace import Workspace


@dataclass(frozen=True)
class Preparation:
    """One preparation and all that it needs."""

    run: Run
    spec: FineTuneJobSpec
    workspace: Workspace
    progress: Progress
    model: BaseModel
    tokenizer: ModelTokenizer
    start: Start | None = None
    """Stored adapters that the method starts from; `spec` names their composition."""

    @property
    def max_length(self) -> int:
        """Tokens of a record (of an encoder-decoder's input, and of its answer), within what the model can read beside
        the method's virtual tokens."""
        longest, wished = self.model.longest_input, self.spec.training.max_length
        return wished if longest is None else min(wished, longest - self.spec.method.options.positions)

    @property
    def packing(self) -> bool:
        """Whether several records share a row."""
        wish, options = self.spec.dataset.packing, self.spec.objective.options
        pays = self.spec.resources.gpus > 0 and self.spec.method.options.takes_packed_rows
        is_possible = options.takes_packed_rows and not self.in_pairs
        return is_possible and (wish == "always" or (wish == "auto" and pays))

    @property
    def records(self) -> RecordType:
        """What the objective learns from."""
        return RECORD_TYPES[self.spec.objective.kind]

    @property
    def in_pairs(self) -> bool:
        """Whether a record is an input and an answer, apart, as an encoder-decoder takes them."""
        return self.records.has_answers and self.model.is_encoder_decoder

    @property
    def declared_labels(self) -> list[str] | None:
        """The classes that the spec names; [] where the objective has none, None where the data will tell."""
        return self.spec.objective.options.declared_labels if self.records.has_labels else []


@dataclass(frozen=True)
class Watch:
    """Who listens while the data is read."""

    labels_known: Callable[[list[str]], None]
    """Told the classes as soon as they are settled."""
    check: Callable[[], None]
    """Called now and then; raises what has failed elsewhere."""
