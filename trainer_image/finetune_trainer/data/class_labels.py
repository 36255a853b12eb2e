"""The classes of records, by name and by number.

It decides which labels belong, and in which order they are numbered.
"""

from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import BadRecordError, Failure

MOST_LABELS = 1000


class Labels:
    """The classes: those that the spec names, or those found in training."""

    def __init__(self, declared: list[str] | None, field: str) -> None:
        """`field` is where the spec may name them."""
        self._field = field
        self._ids = {label: index for index, label in enumerate(declared or [])}
        self._declared = declared is not None
        self._closed = self._declared
        self.counts: dict[str, int] = dict.fromkeys(self._ids, 0)

    @property
    def names(self) -> list[str]:
        """In the order of their ids."""
        return list(self._ids) if self._declared else sorted(self._ids)

    @property
    def places(self) -> list[int]:
        """The final id of each id that was given out."""
        final = {name: index for index, name in enumerate(self.names)}
        return [final[name] for name in self._ids]

    def close(self) -> None:
        """Training is read: no class is new from here on."""
        self._closed = True

    def id_of(self, label: str) -> int:
        """The id of a record's label; raises BadRecordError for one that does not belong."""
        found = self._ids.get(label)
        if found is None:
            found = self._new(label)
        self.counts[label] = self.counts.get(label, 0) + 1
        return found

    def _new(self, label: str) -> int:
        if self._declared:
            names = ", ".join(self.names[:10])
            raise BadRecordError(f"label {label!r} is not one of {self._field}: {names}")
        if self._closed:
            raise BadRecordError(f"label {label!r} does not occur in the training data: {', '.join(self.names[:10])}")
        if len(self._ids) == MOST_LABELS:
            message = f"more than {MOST_LABELS} different labels: is the label column the right one?"
            raise Failure(Reason.DATASET_INVALID, message)
        return self._ids.setdefault(label, len(self._ids))
