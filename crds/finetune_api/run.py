"""The one file that a trainer pod is given: the whole resolved spec, and where the places that it names are mounted.

The operator (or `finetune run`) writes it once per job; the three stages parse it with the same model. No environment
variable per field.
"""

from pathlib import Path

from finetune_api import labels, uris
from finetune_api.schema import Model
from finetune_api.spec import FineTuneJobSpec


class Run(Model):
    """A frozen run. It is written once: a later default or a later operator never changes it."""

    name: str
    """The job's name."""
    namespace: str = "default"
    """The job's namespace."""
    uid: str
    """The job's uid: checkpoints and artifacts of another run are told apart by it."""
    spec: FineTuneJobSpec
    """The resolved spec."""
    trainer_image: str = ""
    """Image of all stages; empty for local processes."""
    workspace: str = labels.WORKSPACE
    """Folder that the stages share."""
    mounts: dict[str, str] = {}
    """From `pvc://claim`, `configmap://name` or `secret://name` to the folder where it is mounted."""

    def locate(self, uri: str) -> Path:
        """The local path of a mounted or local `uri`; raises KeyError when its root is not mounted."""
        parsed = uris.parse(uri)
        if parsed.scheme == "file":
            return Path(parsed.path)
        return Path(self.mounts[parsed.root]) / parsed.path

    def secret(self, name: str, key: str = "token") -> Path:
        """The file that holds `key` of a mounted Secret."""
        return Path(self.mounts[f"secret://{name}"]) / key


def report_file(workspace: Path, stage: str) -> Path:
    """Where a stage leaves its StageReport when it ends, beside the termination message."""
    return workspace / f"{stage}.report.json"


def read_run(path: Path) -> Run:
    """Parse a run file; raises OSError or pydantic.ValidationError."""
    return Run.model_validate_json(path.read_bytes())
