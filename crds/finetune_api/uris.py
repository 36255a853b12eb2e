"""Where bytes live: the URI forms that models, datasets, adapters and outputs are named with.

It splits a URI and says which schemes fit which place. It opens nothing.
"""

import re
from dataclasses import dataclass

HUB = r"hf://[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
CLAIM = r"pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
MODEL_PATTERN = rf"^({HUB}|{CLAIM}(/.+)?|file://.+)$"
DATASET_PATTERN = rf"^({HUB}(/.+)?|{CLAIM}/.+|configmap://[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[-\w.]+|https://.+|file://.+)$"
ADAPTER_PATTERN = rf"^({HUB}|{CLAIM}/.+|job://[a-z0-9]([-a-z0-9]*[a-z0-9])?|file://.+)$"
OUTPUT_PATTERN = rf"^({CLAIM}/.+|file://.+)$"
NOT_PLAIN = r"^[a-z]+://.*[\x00-\x1f\x7f-\x9f]|^(pvc|hf|configmap|job)://.*(//|/\.(/|$)|\\)|^https://([^/?#]*@|.*\\)"
"""What no URI may match. `.` and `..` of a local file, and `//` on a web server, are the user's and the server's
own."""
MODEL_FORMS = "must be hf://org/name or pvc://claim/path"
DATASET_FORMS = "must be pvc://claim/path, hf://org/name[/path], https://host/path or configmap://name/key"
ADAPTER_FORMS = "must be pvc://claim/path, hf://org/name or job://name"
OUTPUT_FORMS = "must be pvc://claim/path"
SEGMENT = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f-\x9f]+")


@dataclass(frozen=True)
class Uri:
    """A parsed URI. `hf://org/name/path` has the name `org/name`; `pvc://claim/path` the name `claim`; `file://` has
    none. `job://name` is the artifact of that FineTuneJob."""

    scheme: str
    name: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://" + "/".join(part for part in (self.name, self.path) if part)

    @property
    def root(self) -> str:
        """What has to be mounted to reach it: `pvc://claim`, `configmap://name`."""
        return f"{self.scheme}://{self.name}"


def parse(uri: str) -> Uri:
    """Split `uri` into scheme, name and path; raises ValueError when it has no scheme."""
    scheme, separator, rest = uri.partition("://")
    if not separator or not rest:
        raise ValueError(f"{uri!r} is not a URI: expected scheme://name/path")
    if scheme in ("file", "https"):
        return Uri(scheme, "", rest)
    parts = rest.split("/")
    taken = 2 if scheme == "hf" else 1
    return Uri(scheme, "/".join(parts[:taken]), "/".join(parts[taken:]))


def is_plain(path: str) -> bool:
    """Whether `path` goes down from where it begins: a name in each segment, none of them empty, `.` or `..`. A slash
    at its end is no segment."""
    return all(SEGMENT.fullmatch(segment) for segment in path.removesuffix("/").split("/"))
