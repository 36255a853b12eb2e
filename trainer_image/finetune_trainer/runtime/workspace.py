"""Where things lie on the volume that the stages share.

It decides names. It knows nothing of what the files mean.
"""

from dataclasses import dataclass
from pathlib import Path

from finetune_api.run import report_file
from finetune_api.stages import StageName


@dataclass(frozen=True)
class Workspace:
    """The folder of one run."""

    root: Path

    @property
    def prepared(self) -> Path:
        """What prepare made of the dataset; complete when it exists."""
        return self.root / "prepared"

    @property
    def model(self) -> Path:
        """A downloaded base model; complete when it exists."""
        return self.root / "model"

    @property
    def start(self) -> Path:
        """The adapter that training starts from, where it starts from stored ones; complete when it exists."""
        return self.root / "start"

    @property
    def downloads(self) -> Path:
        """Dataset files and adapters that had to be fetched, until they are prepared."""
        return self.root / "downloads"

    @property
    def checkpoints(self) -> Path:
        """Where train saves its state."""
        return self.root / "checkpoints"

    @property
    def result(self) -> Path:
        """What train leaves for publish."""
        return self.root / "result"

    @property
    def bad_records(self) -> Path:
        """Every record that prepare refused, one JSON object a line."""
        return self.root / "bad-records.jsonl"

    def report(self, stage: StageName) -> Path:
        """The last report of `stage`."""
        return report_file(self.root, stage)
