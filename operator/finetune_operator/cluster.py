"""The one door to the API server: connection, credentials, and raw JSON requests that are bounded in time and retried.

It knows the protocol of Kubernetes and no object of ours. Only this module imports the kubernetes package, for its
configuration: typed models cost nine times the CPU and twice the memory of plain JSON.
"""

import asyncio
import json
import logging
import os
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import client, config

log = logging.getLogger(__name__)

Object = dict[str, Any]

ATTEMPTS = 5
"""Tries of one request; what still fails is the work queue's to retry."""
TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
IMPATIENT = aiohttp.ClientTimeout(total=11, sock_connect=5)
"""A webhook's default time is 10 s; people are told within half a minute that it does not answer."""
WATCH_SECONDS = 290
"""The server ends a watch after so long."""
WATCHING = {"watch": "1", "allowWatchBookmarks": "1", "timeoutSeconds": str(WATCH_SECONDS)}
WATCH_SILENCE = 75
"""Bookmarks come every minute: a stream that is silent for longer is dead."""
PAGE = 500
UNKNOWN_FIELD = b"field not declared in schema"
"""A 500 of an apply that another try would only repeat."""
MERGE = "application/merge-patch+json"
LONGEST_LINE = 2**21
"""Bytes of one object in a watch; etcd takes 1.5 MiB."""


class ApiError(Exception):
    """The API server's refusal."""

    def __init__(self, status: int, reason: str, message: str, fields: tuple[str, ...] = ()) -> None:
        """`fields` are those that the server blames."""
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.fields = fields


class NotFound(ApiError):
    """404."""


class Conflict(ApiError):
    """409: it exists already, or is not the one that was meant."""


class NoCluster(Exception):
    """No way to a cluster is configured."""


@dataclass(frozen=True)
class Kind:
    """A kind of object, as its URL names it."""

    api_version: str
    plural: str

    def path(self, namespace: str | None, name: str = "", subresource: str = "") -> str:
        root = "/apis" if "/" in self.api_version else "/api"
        scope = f"namespaces/{namespace}" if namespace else ""
        return "/".join(part for part in (root, self.api_version, scope, self.plural, name, subresource) if part)


@dataclass(frozen=True)
class Change:
    """One event of a watch. `type` is LISTED for what the initial list found."""

    type: str
    object: Object


class Cluster:
    """A connection to one API server. Make it with `connect`."""

    def __init__(self, server: str, new_session: Callable[[], aiohttp.ClientSession]) -> None:
        self.server = server.rstrip("/")
        self.new_session = new_session
        """For those that close the session they are given."""
        self._session = new_session()

    async def close(self) -> None:
        await self._session.close()

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        try:
            return await self.request("GET", kind.path(namespace, name))
        except NotFound:
            return None

    async def find(self, kind: Kind, namespace: str | None, labels: str = "", fields: str = "") -> list[Object]:
        """All objects of a kind that the selectors match."""
        items, _ = await self._list(kind, namespace, _selectors(labels, fields))
        return items

    async def create(self, kind: Kind, body: Object, manager: str, patient: bool = True) -> Object:
        """Create `body`; raises Conflict when an object of that name exists, whoever made it. Without patience what a
        webhook holds up is told soon, instead of tried again."""
        path, query = kind.path(body["metadata"]["namespace"]), {"fieldManager": manager}
        if patient:
            return await self.request("POST", path, query, body)
        return await self.request("POST", path, query, body, attempts=2, timeout=IMPATIENT)

    async def replace(self, kind: Kind, body: Object) -> Object:
        """Write `body`; raises Conflict when its resourceVersion is not the latest."""
        metadata = body["metadata"]
        return await self.request("PUT", kind.path(metadata["namespace"], metadata["name"]), body=body)

    async def apply_status(self, kind: Kind, body: Object, manager: str) -> Object:
        """Server-side apply of the status; raises Conflict when `metadata.uid` is not that object's."""
        metadata = body["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"], "status")
        return await self.request("PATCH", path, {"fieldManager": manager, "force": "true"}, body)

    async def merge(self, kind: Kind, namespace: str, name: str, uid: str, metadata: Object) -> Object:
        """Change metadata of that very object; None takes a field away. Raises Conflict when it is another one."""
        body = {"metadata": {"uid": uid, **metadata}}
        return await self.request("PATCH", kind.path(namespace, name), body=body, content=MERGE)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete that very object, its dependants in the background; gone or replaced already is fine."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": uid}}
        try:
            await self.request("DELETE", kind.path(namespace, name), body=options)
        except (NotFound, Conflict):
            log.debug("%s %s/%s is gone already", kind.plural, namespace, name)

    async def watch(
        self, kind: Kind, namespace: str | None, labels: str = "", fields: str = ""
    ) -> AsyncIterator[Change]:
        """What exists, then what changes, for ever; nothing is remembered. After a gap everything is listed again."""
        failures = 0
        while True:
            try:
                async for change in self._watch_once(kind, namespace, _selectors(labels, fields)):
                    failures = 0
                    yield change
            except (ApiError, aiohttp.ClientError, TimeoutError, OSError, ValueError) as problem:
                failures += 1
                log.warning("watching %s: %s", kind.plural, problem or repr(problem))
                await asyncio.sleep(random.uniform(0.5, 1) * min(5, 0.5 * 2 ** min(failures, 10)))

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "",
        attempts: int = ATTEMPTS,
        timeout: aiohttp.ClientTimeout = TIMEOUT,
    ) -> Object:
        """One request. Server errors and 429 are tried again: all our requests say the same when said twice."""
        data = None if body is None else json.dumps(body, separators=(",", ":"))
        kind = content or ("application/apply-patch+yaml" if method == "PATCH" else "application/json")
        for attempt in range(1, attempts + 1):
            try:
                async with self._session.request(
                    method, self.server + path, params=query, data=data, headers={"Content-Type": kind}, timeout=timeout
                ) as response:
                    text = await response.read()
                    if response.status < 400:
                        answer: Object = json.loads(text)
                        return answer
                    problem: Exception = _error(response.status, text)
                    wait = _retry_after(response)
                    if response.status != 429 and (response.status < 500 or UNKNOWN_FIELD in text):
                        raise problem
            except (aiohttp.ClientError, TimeoutError) as failure:
                problem, wait = failure, None
            if attempt < attempts:
                await asyncio.sleep(wait if wait is not None else random.uniform(0.5, 1) * 0.2 * 2**attempt)
        raise problem

    async def _list(self, kind: Kind, namespace: str | None, query: Mapping[str, str]) -> tuple[list[Object], str]:
        """All pages, and the resourceVersion to watch from."""
        items: list[Object] = []
        page = {**query, "limit": str(PAGE)}
        while True:
            answer = await self.request("GET", kind.path(namespace), page)
            items.extend(answer["items"])
            if not answer["metadata"].get("continue"):
                return items, answer["metadata"]["resourceVersion"]
            page["continue"] = answer["metadata"]["continue"]

    async def _watch_once(self, kind: Kind, namespace: str | None, query: Mapping[str, str]) -> AsyncIterator[Change]:
        """List, then watch, resuming where a stream ended in order; returns when the server forgot that place."""
        items, version = await self._list(kind, namespace, query)
        for item in items:
            yield Change("LISTED", item)
        del items
        timeout = aiohttp.ClientTimeout(total=WATCH_SECONDS + 30, sock_connect=5, sock_read=WATCH_SILENCE)
        while True:
            asked = {**WATCHING, **query, "resourceVersion": version}
            async with self._session.get(self.server + kind.path(namespace), params=asked, timeout=timeout) as response:
                if response.status >= 400:
                    raise _error(response.status, await response.read())
                async for line in response.content:
                    change = json.loads(line)
                    if change["type"] == "ERROR":
                        status = change["object"]
                        if status.get("code") == 410:
                            return
                        raise ApiError(status.get("code", 500), status.get("reason", ""), status.get("message", ""))
                    version = change["object"]["metadata"]["resourceVersion"]
                    if change["type"] != "BOOKMARK":
                        yield Change(change["type"], change["object"])


async def connect() -> Cluster:
    """Connect as the pod's service account, or as KUBECONFIG (or ~/.kube/config) says; raises NoCluster."""
    configuration = client.Configuration()
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG"):
            config.load_incluster_config(configuration)  # type: ignore[no-untyped-call]
        else:
            files = os.environ.get("KUBECONFIG") or "~/.kube/config"
            await config.load_kube_config(files, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as problem:
        raise NoCluster(f"no cluster to talk to ({problem}): set KUBECONFIG, or run in a cluster") from problem
    return Cluster(configuration.host, lambda: _session(configuration))


def _session(configuration: client.Configuration) -> aiohttp.ClientSession:
    async def authorize(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        # Asked for each request: service account tokens are rotated under a running process.
        token = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            request.headers["Authorization"] = token
        elif configuration.username:
            request.headers["Authorization"] = str(configuration.get_basic_auth_token())
        return await send(request)

    context = client.ApiClient(configuration).rest_client.ssl_context
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=context),
        middlewares=(authorize,),
        headers={"User-Agent": "finetune-operator"},
        trust_env=True,
        read_bufsize=LONGEST_LINE,
    )


def _selectors(labels: str, fields: str) -> dict[str, str]:
    pairs = {"labelSelector": labels, "fieldSelector": fields}
    return {name: value for name, value in pairs.items() if value}


def _error(status: int, text: bytes) -> ApiError:
    try:
        answer = json.loads(text)
        reason, message = str(answer.get("reason", "")), str(answer.get("message", ""))
        causes = (answer.get("details") or {}).get("causes") or ()
        fields = tuple(str(cause.get("field", "")) for cause in causes)
    except (ValueError, AttributeError):
        reason, message, fields = "", text[:500].decode(errors="replace"), ()
    return {404: NotFound, 409: Conflict}.get(status, ApiError)(status, reason, message, fields)


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """The server's own wish, bounded: a worker must not sleep for minutes."""
    text = response.headers.get("Retry-After", "")
    return min(10.0, float(text)) if text.isdigit() else None
