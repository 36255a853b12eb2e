"""The one door to the API server: connection, credentials, and raw JSON requests that are bounded in time and retried.

It knows the protocol of Kubernetes and no object of ours. Only this module imports the kubernetes package, and only to
read a kubeconfig: its typed models cost nine times the CPU and twice the memory of plain JSON.
"""

import asyncio
import logging
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import aiohttp
from aiohttp.http_exceptions import LineTooLong
from pydantic_core import from_json, to_json

from finetune_api.proxies import ProxyError, over_http, proxy_for

log = logging.getLogger(__name__)

Object = dict[str, Any]

ATTEMPTS = 5
"""Tries of one request; what still fails is the work queue's to retry."""
TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=5)
IMPATIENT = aiohttp.ClientTimeout(total=25, sock_connect=5)
"""A webhook has 10 s unless its configuration says more, and 30 at most; people are told within half a minute that it
does not answer, so the last 5 of these are theirs."""
SOON_SECONDS = 3
"""What fails later than that is not tried again impatiently: it would take as long once more."""
WATCH_SECONDS = 290
"""The server ends a watch after so long."""
WATCHING = {"watch": "1", "allowWatchBookmarks": "1", "timeoutSeconds": str(WATCH_SECONDS)}
WATCH_SILENCE = 75
"""Bookmarks come every minute: a stream that is silent for longer is dead."""
STEADY_SECONDS = 5
"""A watch that lasted so long has worked: the next one is asked for without waiting longer and longer."""
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
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


BROKEN = (ApiError, aiohttp.ClientError, LineTooLong, TimeoutError, OSError, ValueError, LookupError, TypeError)
"""What a stream may break with: the server, the network, or a line that is no change."""


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
    """One event of a watch. `type` is LISTED for what a list found, and RELISTED, without an object, after every list
    but the first: changes before it may have been missed, deletions too."""

    type: str
    object: Object


@dataclass(frozen=True)
class Access:
    """How an API server is reached."""

    server: str
    tls: ssl.SSLContext
    authorization: Callable[[], Awaitable[str]]
    """The header of that name; asked for each request: a service account's token is rotated under a running process."""
    proxy: str | None = None


class Cluster:
    """A connection to one API server. Make it with `connect`."""

    def __init__(self, access: Access) -> None:
        self.server = access.server.rstrip("/")
        self._access = access
        self._session = self.new_session()

    def new_session(self, *middlewares: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
        """For those that close the session they are given."""
        access = self._access

        async def authorize(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
            if header := await access.authorization():
                request.headers["Authorization"] = header
            return await send(request)

        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=access.tls),
            middlewares=(*middlewares, authorize),
            headers={"User-Agent": "finetune-operator"},
            proxy=access.proxy,
            # aiohttp's reading of the environment ignores ranges in NO_PROXY.
            trust_env=False,
            read_bufsize=LONGEST_LINE,
        )

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
        webhook holds up is waited for once, and told then."""
        path, query = kind.path(body["metadata"]["namespace"]), {"fieldManager": manager}
        if patient:
            return await self.request("POST", path, query, body)
        return await self.request("POST", path, query, body, attempts=2, timeout=IMPATIENT, again_within=SOON_SECONDS)

    async def replace(self, kind: Kind, body: Object) -> Object:
        """Write `body`; raises Conflict when its resourceVersion is not the latest."""
        metadata = body["metadata"]
        return await self.request("PUT", kind.path(metadata["namespace"], metadata["name"]), body=body)

    async def apply_status(self, kind: Kind, body: Object, manager: str) -> Object:
        """Server-side apply of the status; raises Conflict when `metadata.resourceVersion` is not the latest. (Of a
        custom resource's status the API server ignores `metadata.uid`.)"""
        metadata = body["metadata"]
        path = kind.path(metadata["namespace"], metadata["name"], "status")
        return await self.request("PATCH", path, {"fieldManager": manager, "force": "true"}, body)

    async def merge(self, kind: Kind, namespace: str, name: str, uid: str, metadata: Object) -> Object:
        """Change metadata of that very object; None takes a field away. Raises Conflict when it is another one."""
        body = {"metadata": {"uid": uid, **metadata}}
        try:
            return await self.request("PATCH", kind.path(namespace, name), body=body, content=MERGE)
        except ApiError as problem:
            if "metadata.uid" in problem.fields:  # it is immutable, says the API server
                raise Conflict(409, "Conflict", problem.message) from problem
            raise

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
        """What exists, then what changes, for ever; nothing is remembered.

        A stream that ends or breaks is asked for again from the last resourceVersion that was seen, in bookmarks too.
        Only a server that forgot that version (410) makes a new list.
        """
        query, version, is_listed, failures = _selectors(labels, fields), "", False, 0
        while True:
            began, problem, level = float("inf"), "it ended", logging.DEBUG
            try:
                if not version:
                    items, version = await self._list(kind, namespace, query)
                    for item in items:
                        yield Change("LISTED", item)
                    del items
                    if is_listed:
                        yield Change("RELISTED", {})
                    is_listed = True
                began = monotonic()
                async for change in self._stream(kind, namespace, {**query, "resourceVersion": version}):
                    version = change.object["metadata"]["resourceVersion"]
                    if change.type != "BOOKMARK":
                        yield change
            except BROKEN as failure:
                # A stream cannot pass a line that is too long, a list can.
                is_gone = isinstance(failure, ApiError) and failure.status == 410
                version = "" if is_gone or isinstance(failure, LineTooLong) else version
                # Nothing is lost when a stream breaks, so nobody need know; that it breaks again at once is trouble.
                problem, level = str(failure) or repr(failure), logging.WARNING if failures else logging.INFO
            failures = failures + 1 if monotonic() - began < STEADY_SECONDS else 0
            log.log(level, "the watch of %s goes on: %s", kind.plural, problem)
            if failures:
                await asyncio.sleep(random.uniform(0.5, 1) * min(5, 0.25 * 2 ** min(failures, 10)))

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content: str = "",
        attempts: int = ATTEMPTS,
        timeout: aiohttp.ClientTimeout = TIMEOUT,  # noqa: ASYNC109 - of each try, and of its connection
        again_within: float = float("inf"),
    ) -> Object:
        """One request. Server errors and 429 are tried again, if they came within so many seconds: all our requests say
        the same when said twice."""
        data = None if body is None else to_json(body)
        kind = content or ("application/apply-patch+yaml" if method == "PATCH" else "application/json")
        began = monotonic()
        for attempt in range(1, attempts + 1):
            try:
                async with self._session.request(
                    method, self.server + path, params=query, data=data, headers={"Content-Type": kind}, timeout=timeout
                ) as response:
                    text = await response.read()
                    if response.status < 400:
                        answer: Object = from_json(text)
                        return answer
                    problem: Exception = _error(response.status, text)
                    wait = _retry_after(response)
                    if response.status != 429 and (response.status < 500 or UNKNOWN_FIELD in text):
                        raise problem
            except (aiohttp.ClientError, TimeoutError) as failure:
                problem, wait = failure, None
            if attempt == attempts or monotonic() - began > again_within:
                break
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

    async def _stream(self, kind: Kind, namespace: str | None, query: Mapping[str, str]) -> AsyncIterator[Change]:
        """The changes that one request brings, BOOKMARKs too; raises ApiError for an ERROR."""
        timeout = aiohttp.ClientTimeout(total=WATCH_SECONDS + 30, sock_connect=5, sock_read=WATCH_SILENCE)
        url, asked = self.server + kind.path(namespace), {**WATCHING, **query}
        async with self._session.get(url, params=asked, timeout=timeout) as response:
            if response.status >= 400:
                raise _error(response.status, await response.read())
            async for line in response.content:
                change = from_json(line)
                if change["type"] == "ERROR":
                    status = change["object"]
                    raise ApiError(status.get("code", 500), status.get("reason", ""), status.get("message", ""))
                yield Change(change["type"], change["object"])


async def connect(environment: Mapping[str, str] = os.environ, account: Path = SERVICE_ACCOUNT) -> Cluster:
    """Connect as the pod's service account, or as KUBECONFIG (or ~/.kube/config) says; raises NoCluster."""
    if "KUBERNETES_SERVICE_HOST" in environment and not environment.get("KUBECONFIG"):
        return Cluster(_own_cluster(environment, account))
    return Cluster(await _named_cluster(environment))


def _own_cluster(environment: Mapping[str, str], account: Path) -> Access:
    """The API server of the cluster that we are a pod of. It is never behind a proxy, whatever the environment says."""
    host, port = environment["KUBERNETES_SERVICE_HOST"], environment.get("KUBERNETES_SERVICE_PORT", "443")
    token = account / "token"

    async def authorization() -> str:
        return f"Bearer {token.read_text().strip()}"

    try:
        token.read_text()
        tls = ssl.create_default_context(cafile=account / "ca.crt")
    except OSError as problem:
        raise NoCluster(f"the pod has no service account ({problem}): set automountServiceAccountToken") from problem
    return Access(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}", tls, authorization)


async def _named_cluster(environment: Mapping[str, str]) -> Access:
    """The API server that a kubeconfig names, through its `proxy-url`, else through the environment's proxy."""
    # Not at the top: a pod does not need it, and it takes longer than all other imports together.
    import yaml
    from kubernetes.aio import client, config

    configuration = client.Configuration()
    try:
        files = environment.get("KUBECONFIG") or "~/.kube/config"
        await config.load_kube_config(files, client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError, yaml.YAMLError, TypeError, AttributeError) as problem:
        raise NoCluster(f"no cluster to talk to ({problem}): set KUBECONFIG, or run in a cluster") from problem

    async def authorization() -> str:
        token = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return str(token or (configuration.get_basic_auth_token() if configuration.username else "") or "")

    try:
        proxy = configuration.proxy or proxy_for(configuration.host, environment)
        proxy = over_http(proxy) if proxy else None
    except ProxyError as error:
        raise NoCluster(str(error)) from None
    return Access(configuration.host, client.ApiClient(configuration).rest_client.ssl_context, authorization, proxy)


def _selectors(labels: str, fields: str) -> dict[str, str]:
    pairs = {"labelSelector": labels, "fieldSelector": fields}
    return {name: value for name, value in pairs.items() if value}


def _error(status: int, text: bytes) -> ApiError:
    try:
        answer = from_json(text)
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
