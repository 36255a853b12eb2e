"""`spec.objective`: which loss is minimised. One option model per objective."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.schema import ApiModel, exactly_one_of, only_member


class ObjectiveOptions(ApiModel):
    """What every objective has."""

    takes_packed_rows: ClassVar[bool] = False
    """Whether several records may share a row."""

    @property
    def carries_loss_everywhere(self) -> bool:
        """Whether the tokens of an input carry loss too, not only those of the answer."""
        return False

    @property
    def declared_labels(self) -> list[str] | None:
        """The classes; None where there are none, or where the data will tell."""
        return None


class Sft(ObjectiveOptions):
    """Supervised fine-tuning: next-token cross-entropy on answers (chat, prompt/completion) or on plain text. An
    encoder-decoder reads the prompt and learns the completion, or the last answer of a chat; it takes no plain text."""

    loss_on: Literal["completion", "all"] = "completion"
    """`completion`: only the assistant's tokens carry loss; `all`: every token. Plain text has no prompt: all its
    tokens count."""

    takes_packed_rows: ClassVar = True

    @property
    def carries_loss_everywhere(self) -> bool:
        return self.loss_on == "all"


class Classification(ObjectiveOptions):
    """Single-label text classification with a linear head on the model."""

    labels: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=2, max_length=1000)]
        | None
    ) = None
    """The classes in the order of their ids. Default: those found in the training data, sorted."""

    @property
    def declared_labels(self) -> list[str] | None:
        return self.labels


class Objective(ApiModel):
    """Which loss is minimised. Set exactly one member; supervised fine-tuning unless told otherwise."""

    rules: ClassVar = (exactly_one_of("sft", "classification"),)

    sft: Sft | None = None
    classification: Classification | None = None

    @property
    def kind(self) -> str:
        """The name of the member that is set."""
        return only_member(self)

    @property
    def options(self) -> ObjectiveOptions:
        """The member that is set."""
        options: ObjectiveOptions = getattr(self, self.kind)
        return options
