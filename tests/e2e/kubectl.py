"""kubectl as the tests use it: words in, values out, and waits that end as soon as something is true.

It knows how to ask one cluster. What the answers should be is the tests' business.
"""

import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Object = dict[str, Any]

COLLECTIONS = {
    "finetunejob": "/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs",
    "job": "/apis/batch/v1/namespaces/{namespace}/jobs",
    "pod": "/api/v1/namespaces/{namespace}/pods",
}
"""What can be watched, by its path."""


class KubectlError(AssertionError):
    """kubectl refused; its own words."""


class WaitError(AssertionError):
    """Something did not become true in time."""


@dataclass(frozen=True)
class Kubectl:
    """kubectl in one namespace of one cluster."""

    program: str
    environment: Mapping[str, str]
    namespace: str = "default"

    def within(self, namespace: str) -> "Kubectl":
        return replace(self, namespace=namespace)

    def __call__(self, *arguments: str, document: str | None = None, seconds: float = 120) -> str:
        """What it says on stdout; `document` is its stdin. Raises KubectlError with what it says on stderr."""
        done = subprocess.run(
            self._command(*arguments),
            input=document,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
        if done.returncode:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def pipe(self, *arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
        """The same as a process whose streams are bytes."""
        return subprocess.Popen(self._command(*arguments), env=self._environment(), **streams)

    def apply(self, manifest: Path | Object) -> str:
        """Apply a file as it is, or an object."""
        if isinstance(manifest, Path):
            return self("apply", "--filename", str(manifest))
        return self("apply", "--filename=-", document=json.dumps(manifest))

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(self("get", kind, name, "--output=json"))
        return found

    def all(self, kind: str, selector: str = "") -> list[Object]:
        """All objects of a kind, oldest first."""
        options = ["--selector", selector] if selector else []
        items: list[Object] = json.loads(self("get", kind, *options, "--output=json"))["items"]
        return sorted(items, key=lambda item: item["metadata"]["creationTimestamp"])

    def until(self, kind: str, name: str, is_true: Callable[[Object], bool], what: str, seconds: float) -> Object:
        """The object as soon as `is_true` of it; raises WaitError, with what was seen last, when time is up."""
        last: Object = {}
        for last in self.watch(kind, f"fieldSelector=metadata.name%3D{name}", seconds):
            if is_true(last):
                return last
        status = json.dumps(last.get("status", {}), indent=1)
        raise WaitError(f"{kind} {name}: waited {seconds:.0f} s for {what}; its status: {status}")

    def watch(self, kind: str, selector: str, seconds: float) -> Iterator[Object]:
        """The objects that match now, then each of them again when it changes, until time is up."""
        path = COLLECTIONS[kind].format(namespace=self.namespace)
        process = self.pipe(
            "get", "--raw", f"{path}?watch=1&{selector}&timeoutSeconds={max(1, round(seconds))}", stdout=subprocess.PIPE
        )
        timer = threading.Timer(seconds + 5, process.kill)  # should the server not keep its word
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                event = json.loads(line)
                if event["type"] in ("ADDED", "MODIFIED"):
                    yield event["object"]
        finally:
            timer.cancel()
            process.kill()
            process.wait()

    def _command(self, *arguments: str) -> list[str]:
        return [self.program, "--namespace", self.namespace, *arguments]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment}
