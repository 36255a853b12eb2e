"""The Lease object of the leader election, read and written through the API server."""

from datetime import UTC, datetime
from typing import Any

import aiohttp

from finetune_operator import lease
from finetune_operator.cluster import ApiError, Cluster, Conflict, Kind

LEASES = Kind("coordination.k8s.io/v1", "leases")
RENEWAL = "finetune.dev/renewal"


class LeaseObject:
    """A `lease.Store` for one named Lease."""

    def __init__(self, cluster: Cluster, namespace: str, name: str) -> None:
        self._cluster = cluster
        self._namespace = namespace
        self._name = name

    async def read(self) -> lease.Claim | None:
        try:
            body = await self._cluster.get(LEASES, self._namespace, self._name)
        except (ApiError, aiohttp.ClientError) as problem:
            raise OSError(str(problem)) from problem
        return None if body is None else _claim(body)

    async def write(self, claim: lease.Claim) -> None:
        body = _body(self._namespace, self._name, claim)
        try:
            if claim.version:
                await self._cluster.replace(LEASES, body)
            else:
                await self._cluster.create(LEASES, body, "finetune-operator")
        except Conflict as problem:
            raise lease.Conflict from problem
        except (ApiError, aiohttp.ClientError) as problem:
            raise OSError(str(problem)) from problem


def _claim(body: dict[str, Any]) -> lease.Claim:
    metadata, spec = body["metadata"], body.get("spec", {})
    return lease.Claim(
        holder=spec.get("holderIdentity") or "",
        duration=float(spec.get("leaseDurationSeconds") or 0),
        renewal=metadata.get("annotations", {}).get(RENEWAL, metadata["resourceVersion"]),
        transitions=spec.get("leaseTransitions") or 0,
        version=metadata["resourceVersion"],
    )


def _body(namespace: str, name: str, claim: lease.Claim) -> dict[str, Any]:
    metadata = {"namespace": namespace, "name": name, "annotations": {RENEWAL: claim.renewal}}
    if claim.version:
        metadata["resourceVersion"] = claim.version
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {
            "holderIdentity": claim.holder,
            # The API takes whole seconds, at least one.
            "leaseDurationSeconds": max(1, round(claim.duration)),
            "leaseTransitions": claim.transitions,
            # For people: no replica compares another's clock.
            "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        },
    }
