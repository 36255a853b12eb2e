"""How what is said about a stage's pods is put together: by the operator, the platform and the job.

It decides who outweighs whom. It knows no field's meaning, and no pod.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.pod_template import PodTemplate, StageTemplate
from finetune_api.stages import StageName

Object = dict[str, Any]

KEYS = {
    "env": ("name",),
    "volumes": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "tolerations": ("key", "operator", "value", "effect"),
}
"""By what the items of a list are told apart. Tolerations by nearly all of it: each only permits, so they add up."""
STANZAS = frozenset({"metadata", "securityContext"})
"""Fields that hold fields, each of which is put together by its own name."""
MAPS = frozenset({"labels", "annotations", "nodeSelector", "seLinuxOptions", "ephemeralStorage"})
"""Fields whose keys are people's own words, or plain values: a label may be called `env`, and is no list."""


def merged(stage: StageName, own: Object, platform: PodTemplate | None, spec: FineTuneJobSpec) -> Object:
    """What is said about the pods of `stage`, as fields of a StageTemplate.

    Each of these outweighs those before it: the operator's own; the platform's template, then what it says of the
    stage; the job's `scheduling`, its podTemplate, then what that says of the stage. Maps are merged by key, lists by
    the KEYS of their items, anything else is replaced. An id that is unset, or null, is left out unless a later one
    sets it.
    """
    scheduling = {"nodeSelector": spec.scheduling.node_selector, "tolerations": _wire(spec.scheduling.tolerations)}
    levels = [own, *_levels(platform, stage), scheduling, *_levels(spec.pod_template, stage)]
    found: Object = reduce(_over, levels, {})
    return found


def _levels(template: PodTemplate | None, stage: StageName) -> list[Object]:
    if template is None:
        return []
    specific = getattr(template.stages, stage) if template.stages else None
    return [_said(template), *([_said(specific)] if specific else [])]


def _said(template: StageTemplate) -> Object:
    """The fields that were given a value; of ids also those that were taken away, as None."""
    said: Object = _wire(template)
    said.pop("stages", None)
    if template.security_context is not None:
        said["securityContext"].pop("unset", None)
        said["securityContext"] |= dict.fromkeys(template.security_context.left_out)
    return said


def _wire(value: Any) -> Any:
    return [_wire(one) for one in value] if isinstance(value, list) else value.to_wire()


def _over(base: Mapping[str, Any], more: Mapping[str, Any]) -> Object:
    """`base` with `more` laid over it: both a template, or the same stanza of one."""
    result = dict(base)
    for name, value in more.items():
        if name in STANZAS:
            result[name] = _over(base.get(name, {}), value)
        elif name in MAPS:
            result[name] = base.get(name, {}) | value
        elif name in KEYS:
            result[name] = _joined(base.get(name, []), value, KEYS[name])
        else:
            result[name] = value
    return result


def _joined(base: list[Object], more: list[Object], keys: tuple[str, ...]) -> list[Object]:
    """The items of both lists in their order; of two with the same keys, the later one in the place of the first."""
    items = {tuple(item.get(key) for key in keys): item for item in [*base, *more]}
    return list(items.values())
