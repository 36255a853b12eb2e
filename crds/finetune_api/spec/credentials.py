"""What every source of bytes in a spec has in common: its credentials, and the rules on its URI.

It decides what may stand in any `uri` field. Which schemes fit which place is said beside the patterns in uris.py.
"""

from finetune_api import uris
from finetune_api.schema import ApiModel, DnsName, KeyName, Rule

_LOCAL_FILE = "file:// works only with `finetune run` on one machine; in a cluster use pvc://claim/path"

REVISION_OF_THE_HUB = Rule(
    "!has(self.revision) || self.uri.startsWith('hf://')", "revision belongs to hf:// sources only"
)


def not_a_local_file(field: str) -> Rule:
    return Rule(f"!self.{field}.startsWith('file://')", _LOCAL_FILE, cluster_only=True)


def stays_inside(field: str) -> Rule:
    return Rule(rf"!self.{field}.matches(r'(^|/)\.\.(/|$)')", f"{field} must not contain '..'")


def plain_path(field: str) -> Rule:
    """A name for each segment: what an empty one means differs between programs, and `//etc` is not below a volume."""
    message = (
        f"{field} must be plain: no '//' and no '.' between slashes, no backslash, no control character, "
        "and no user before an https host"
    )
    return Rule(f"!self.{field}.matches(r'{uris.NOT_PLAIN}')", message)


class Auth(ApiModel):
    """Credentials for one source."""

    secret_name: DnsName
    """Name of a Secret in the job's namespace that holds the bearer token (Hugging Face Hub, https)."""
    key: KeyName | None = None
    """The key of that Secret. Default: `token`."""
