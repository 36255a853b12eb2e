"""What the command line asks a cluster: jobs, pods and logs, as plain JSON.

It decides how a connection is found (as kubectl finds it) and how a refusal reads. The only module here that imports
the Kubernetes client, and only when a verb needs it.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlencode

from finetune_api import labels
from finetune_api.proxies import ProxyError, checked, proxy_for
from finetune_api.text import printable

Object = dict[str, Any]
JOBS = f"/apis/{labels.API_VERSION}"
CONNECT_SECONDS, READ_SECONDS = 5, 30
WATCH_SECONDS = 240
"""The API server ends a watch after so long, so that a connection that nobody answers any more is found out."""
PAUSE_SECONDS = 1
"""Between two watches, whatever ended the first."""
LOG_CHUNK = 64 * 1024


class ClusterError(Exception):
    """The cluster cannot be asked, or refuses; the message says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))  # it quotes what a server said


class NotFoundError(ClusterError):
    """There is no such object."""


class ExpiredError(ClusterError):
    """The changes since a version are no longer known: what there is has to be read anew."""


class Jobs(Protocol):
    """What the verbs need of a cluster. All raise ClusterError."""

    namespace: str
    """The one to use unless told otherwise."""

    def job(self, namespace: str, name: str) -> Object:
        """One FineTuneJob; raises NotFoundError."""

    def jobs(self, namespace: str | None) -> list[Object]:
        """The FineTuneJobs of a namespace, or of all."""

    def changes(self, namespace: str | None, name: str | None) -> Iterator[list[Object]]:
        """The FineTuneJobs of a namespace, or of all, or the one of that name: as they are, and again after each change
        of one of them. Ends with a ClusterError alone; may be called again."""

    def patch(self, namespace: str, name: str, change: Object) -> Object:
        """Merge a change into a FineTuneJob; returns it as it is then. Raises NotFoundError."""

    def pods(self, namespace: str, selector: str) -> list[Object]:
        """Pods whose labels match."""

    def log(self, namespace: str, pod: str, follow: bool) -> Iterator[str]:
        """The lines that the trainer in a pod has printed, and those to come if `follow`."""


def connect(kubeconfig: str | None, context: str | None, watch_seconds: int = WATCH_SECONDS) -> "Cluster":
    """Find a cluster as kubectl does: --kubeconfig, KUBECONFIG, ~/.kube/config, or the pod that we are in."""
    import kubernetes
    import yaml

    config: Any = kubernetes.config  # ships no types
    configuration = kubernetes.client.Configuration()
    # As kubectl does: the kubeconfig's proxy-url, else the environment's; none to the cluster that we are a pod of.
    configuration.proxy, configuration.no_proxy = None, None
    file = kubeconfig or os.environ.get("KUBECONFIG") or None
    try:
        if file is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=configuration)
            return Cluster(configuration, _own_namespace(), watch_seconds)
        contexts, active = config.list_kube_config_contexts(file)
        config.load_kube_config(file, context, client_configuration=configuration)
    except (config.ConfigException, OSError, yaml.YAMLError, TypeError) as error:
        raise ClusterError(f"no cluster to ask ({error}): set KUBECONFIG, or give --kubeconfig or --context") from None
    try:
        proxy = configuration.proxy or proxy_for(configuration.host, os.environ)
        configuration.proxy = checked(proxy) if proxy else None
    except ProxyError as error:
        raise ClusterError(str(error)) from None
    chosen = next((found for found in contexts if found["name"] == context), active)
    return Cluster(configuration, chosen["context"].get("namespace") or "default", watch_seconds)


def _own_namespace() -> str:
    with open("/var/run/secrets/kubernetes.io/serviceaccount/namespace") as file:
        return file.read().strip()


class Cluster:
    """A connection to one API server; implements Jobs."""

    def __init__(self, configuration: Any, namespace: str, watch_seconds: int) -> None:
        from kubernetes import client

        self.namespace = namespace
        self._configuration = configuration
        self._watch_seconds = watch_seconds
        self._pool = client.ApiClient(configuration).rest_client.pool_manager

    def job(self, namespace: str, name: str) -> Object:
        return self._read(f"{JOBS}/namespaces/{namespace}/{labels.PLURAL}/{name}")

    def jobs(self, namespace: str | None) -> list[Object]:
        scope = f"/namespaces/{namespace}" if namespace else ""
        found: list[Object] = self._read(f"{JOBS}{scope}/{labels.PLURAL}")["items"]
        return found

    def changes(self, namespace: str | None, name: str | None) -> Iterator[list[Object]]:
        path = f"{JOBS}{f'/namespaces/{namespace}' if namespace else ''}/{labels.PLURAL}"
        one = {"fieldSelector": f"metadata.name={name}"} if name else {}
        found: dict[tuple[str, str], Object] = {}
        version = ""
        while True:
            if not version:
                listed = self._read(path, **one)
                found, version = {_key(body): body for body in listed["items"]}, listed["metadata"]["resourceVersion"]
                yield list(found.values())
            try:
                for event in self._events(path, one | {"resourceVersion": version}):
                    version = event["object"]["metadata"]["resourceVersion"]
                    if event["type"] != "BOOKMARK":
                        _take(found, event)
                        yield list(found.values())
            except ExpiredError:
                version = ""
            time.sleep(PAUSE_SECONDS)

    def patch(self, namespace: str, name: str, change: Object) -> Object:
        path = f"{JOBS}/namespaces/{namespace}/{labels.PLURAL}/{name}"
        with self._reached():
            changed: Object = json.loads(self._request("PATCH", path, {}, READ_SECONDS, json.dumps(change)).read())
        return changed

    def pods(self, namespace: str, selector: str) -> list[Object]:
        found: list[Object] = self._read(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)["items"]
        return found

    def log(self, namespace: str, pod: str, follow: bool) -> Iterator[str]:
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        query = {"container": labels.CONTAINER, "follow": str(follow).lower()}
        for line in self._lines(path, query, None if follow else READ_SECONDS):
            yield line.decode(errors="replace")

    def _events(self, path: str, query: dict[str, str]) -> Iterator[Object]:
        """What a watch tells until the API server ends it; raises ExpiredError."""
        query = query | {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(self._watch_seconds)}
        for line in self._lines(path, query, self._watch_seconds + READ_SECONDS):
            try:
                event: Object = json.loads(line)
            except ValueError:  # the stream was cut in the middle of it
                return
            if event["type"] == "ERROR":
                raise _refusal(int(event["object"].get("code", 0)), json.dumps(event["object"]).encode(), self._host)
            yield event

    def _lines(self, path: str, query: dict[str, str], seconds: float | None) -> Iterator[bytes]:
        """The lines of an answer, as they come; `seconds` is the longest silence."""
        with self._reached():
            rest = b""
            for chunk in self._request("GET", path, query, seconds).stream(LOG_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from lines
            if rest:
                yield rest

    def _read(self, path: str, **query: str) -> Object:
        with self._reached():
            answer: Object = json.loads(self._request("GET", path, query, READ_SECONDS).read())
        return answer

    def _request(self, method: str, path: str, query: dict[str, str], seconds: float | None, body: str = "") -> Any:
        """An answer whose status is good; its body is still to be read."""
        import urllib3

        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=seconds)
        url = f"{self._host}{path}?{urlencode(query)}" if query else self._host + path
        headers = self._headers() | ({"Content-Type": "application/merge-patch+json"} if body else {})
        response = self._pool.request(
            method, url, body=body or None, headers=headers, timeout=timeout, retries=False, preload_content=False
        )
        if response.status >= 400:
            raise _refusal(response.status, response.read(), self._host)
        return response

    @property
    def _host(self) -> str:
        return str(self._configuration.host)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Turns what the network does into a ClusterError."""
        import urllib3

        host = self._host
        try:
            yield
        except urllib3.exceptions.HTTPError as error:
            raise ClusterError(f"cannot reach the cluster at {host} ({_cause(error)}): is it up?") from None
        except ValueError:
            raise ClusterError(f"{host} does not answer as an API server does: is the address right?") from None

    def _headers(self) -> dict[str, str]:
        token = self._configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if not token and self._configuration.username:
            token = self._configuration.get_basic_auth_token()
        return {"Accept": "application/json"} | ({"Authorization": token} if token else {})


def _key(body: Object) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _take(found: dict[tuple[str, str], Object], event: Object) -> None:
    """Bring `found` up to date."""
    found.pop(_key(event["object"]), None)
    if event["type"] != "DELETED":
        found[_key(event["object"])] = event["object"]


def _refusal(status: int, body: bytes, host: str) -> ClusterError:
    """What an answer means that is none."""
    try:
        answer = json.loads(body)
        said, named = str(answer.get("message", "")), bool((answer.get("details") or {}).get("name"))
    except (ValueError, AttributeError):
        said, named = body[:300].decode(errors="replace"), False
    if status == 404 and not named:
        return ClusterError(
            f"the cluster at {host} knows no FineTuneJobs: install the operator's chart, it brings the CRD"
        )
    if status == 404:
        return NotFoundError(said)
    if status in (401, 403):
        return ClusterError(f"access denied: {said}")
    if status == 410:
        return ExpiredError(said)
    if status in (409, 422):
        return ClusterError(said)
    return ClusterError(f"the cluster at {host} answered {status}: {said}")


def _cause(error: Exception) -> str:
    """The last part of a chain of reasons: `Connection refused`, without the addresses of Python objects."""
    text = str(getattr(error, "reason", None) or error)
    return text.rpartition("] ")[2].rpartition(">: ")[2] or type(error).__name__
