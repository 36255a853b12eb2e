"""Where LoRA starts when it does not start from nothing: the stored adapters of `startFrom`, found or fetched, checked
against each other and against the base model, and made one.

It is done once, in `prepare`: what comes out is a folder of the workspace in PEFT's layout, and from then on a run
knows one adapter, with weight 1. So no later stage sees the others, a resumed run composes nothing anew, and what
combinations draw at random is drawn once. It decides which adapters fit together; which layers the base model has, only
the method sees.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from finetune_api import uris
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.schema import ApiModel
from finetune_api.spec.job_spec import FineTuneJobSpec
from finetune_api.spec.methods import START_FROM, AdapterSource, StartFrom
from finetune_api.spec.references import to_adapters
from finetune_trainer.pretrained.adapter_composition import DENSITY, EQUAL_RANKS, Composer, Part
from finetune_trainer.pretrained.base_model import BaseModel
from finetune_trainer.pretrained.stored_adapter import CONFIG, MANIFEST, ORIGINS, WEIGHTS, StoredAdapter, StoredLayer
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import beside, new_folder, sha256, sha256_of
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.storage.hub import HubFile
from finetune_trainer.storage.inputs import Input

log = logging.getLogger(__name__)

FILES = (CONFIG, WEIGHTS, MANIFEST)


class Origin(ApiModel):
    """A stored adapter that the run starts from."""

    uri: str
    revision: str
    """The hub's commit, or sha256 of its weights."""
    weight: float


class Start(ApiModel):
    """What the run starts from, where that is not the base model alone."""

    key: str
    """sha256 of everything that shaped it."""
    digest: str
    """sha256 of its weights."""
    adapters: list[Origin]
    combination: str


def from_composed(spec: FineTuneJobSpec, folder: Path) -> FineTuneJobSpec:
    """The spec as everything after the composition reads it: it starts from the one adapter in `folder`."""
    if not spec.method.options.adapters:
        return spec
    composed = StartFrom(adapters=[AdapterSource(uri=f"file://{folder.absolute()}")])
    return spec.model_copy(update={"method": spec.method.starting_from(composed)})


def composed_start(run: Run, workspace: Workspace, model: BaseModel, known: Start | None) -> Start | None:
    """Compose the start of the run on the workspace, unless `known` says that it is there; None for a run without.

    Raises Failure for adapters that cannot be found, are none, or do not fit together.
    """
    wished = run.spec.method.start_from
    if wished is None:
        return None
    key = _key(run, wished, model)
    if known is not None and known.key == key and (workspace.start / WEIGHTS).is_file():
        return known
    adapters, revisions = _opened(run, workspace)
    _check_base(adapters, model)
    with new_folder(workspace.start) as draft:
        write_start(adapters, wished, run.spec.training.seed, draft)
    origins = [
        Origin(uri=source.uri, revision=revision, weight=source.weight)
        for source, revision in zip(wished.adapters, revisions, strict=True)
    ]
    return Start(key=key, digest=sha256(workspace.start / WEIGHTS), adapters=origins, combination=wished.combination)


def composed_here(spec: FineTuneJobSpec, folder: Path) -> FineTuneJobSpec:
    """The settled spec of a job that is only planned, composed in `folder`; its adapters have to be on this machine."""
    wished = spec.method.start_from
    if wished is None:
        return spec
    adapters = []
    for reference in to_adapters(spec):
        uri = uris.parse(reference.uri)
        if uri.scheme != "file":
            told = f"{reference.field}.uri: {uri} is not on this machine: name it as file://"
            raise Failure(Reason.INPUT_UNAVAILABLE, told)
        adapters.append(StoredAdapter(Path(uri.path), reference.field, reference.uri))
    write_start(adapters, wished, spec.training.seed, folder)
    return from_composed(spec, folder)


def write_start(adapters: list[StoredAdapter], wished: StartFrom, seed: int, folder: Path) -> None:
    """Make one adapter of several, in `folder`; raises Failure for those that do not fit together."""
    _check_together(adapters, wished)
    if is_taken_as_it_is(wished):
        _copy(adapters[0].folder, folder)
    else:
        _compose(adapters, wished, seed, folder)


def is_taken_as_it_is(wished: StartFrom) -> bool:
    """One adapter with weight 1, of which nothing is dropped."""
    return len(wished.adapters) == 1 and wished.adapters[0].weight == 1 and wished.combination in ("cat", "linear")


def _key(run: Run, wished: StartFrom, model: BaseModel) -> str:
    """Covers all that shapes the start, with stamps in place of content; of the hub, what was asked of it."""
    stamps = [_stamp(_mounted(where)) for where in _inputs(run) if not where.is_remote]
    return sha256_of([wished.to_wire(), run.spec.training.seed, model.revision, stamps])


def _stamp(folder: Path) -> list[str]:
    found = [folder / name for name in FILES if (folder / name).is_file()]
    return [f"{path}:{path.stat().st_size}:{path.stat().st_mtime_ns}" for path in found]


def _inputs(run: Run) -> list[Input]:
    return [Input(run, reference, "model") for reference in to_adapters(run.spec)]


def _mounted(where: Input) -> Path:
    """The folder of an adapter, whose files lie in its volume."""
    folder = where.located()
    for name in FILES:
        where.proven(folder / name)
    return folder


def _opened(run: Run, workspace: Workspace) -> tuple[list[StoredAdapter], list[str]]:
    """The adapters, and what pins each: the hub's commit or the sha256 of its weights."""
    adapters, revisions = [], []
    for index, where in enumerate(_inputs(run)):
        place, uri, commit = where.reference.field, where.reference.uri, ""
        if where.is_remote:
            fetched = where.fetched(workspace.downloads / f"adapter-{index}", partial(_needed, where))
            folder, commit = fetched.folder, fetched.revision
        else:
            folder = _mounted(where)
            if not folder.exists():
                raise Failure(Reason.INPUT_UNAVAILABLE, f"{place}.uri: {uri} does not exist{beside(folder)}")
            if uri in run.digests:
                _check_published(folder, f"{place}.uri: {uri}", run.digests[uri])
        adapters.append(StoredAdapter(folder, place, uri))
        revisions.append(commit or f"sha256:{sha256(folder / WEIGHTS)}")
    return adapters, revisions


def _needed(where: Input, listed: list[HubFile]) -> list[HubFile]:
    names = {file.name for file in listed}
    if WEIGHTS not in names and "adapter_model.bin" in names:
        raise where.failure("has its weights as a pickle, which could run code: convert them", reason=Reason.BAD_SPEC)
    return [file for file in listed if file.name in FILES]


def _check_published(folder: Path, what: str, digest: str) -> None:
    """The adapter is still what the named job had published: its manifest by digest, its files by the manifest."""
    manifest = folder / MANIFEST
    if not manifest.is_file() or f"sha256:{sha256(manifest)}" != digest:
        why = f"is not what that job had published ({digest}): it was replaced since"
        raise Failure(Reason.INPUT_UNAVAILABLE, f"{what} {why}; restore it, or name it anew in a new job")
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    for name in (CONFIG, WEIGHTS):
        if sha256(folder / name) != files[name]["sha256"]:
            raise Failure(Reason.INPUT_UNAVAILABLE, f"{what}: {name} is not the file that its manifest.json lists")


def _check_base(adapters: list[StoredAdapter], model: BaseModel) -> None:
    """Refuse adapters whose manifest names other weights; what PEFT's config says of the base is only a name."""
    for adapter in adapters:
        base, named = adapter.published_from, adapter.config.get("base_model_name_or_path")
        theirs, uri = str(base.get("revision", "")), str(base.get("uri", ""))
        pinned = theirs.startswith("sha256:") and model.revision.startswith("sha256:")
        both_of_the_hub = uri.startswith("hf://") and model.name.startswith("hf://")
        if (pinned and theirs != model.revision) or (both_of_the_hub and uri != model.name):
            raise adapter.failure(
                f"was trained on {uri} ({theirs[:19]}), and spec.model is {model.name}: name that model"
            )
        if not base and named and named not in model.name:
            log.warning("%s: %s was trained on %s by its own word", adapter.place, adapter.uri, named)


def _check_together(adapters: list[StoredAdapter], wished: StartFrom) -> None:
    if is_taken_as_it_is(wished):
        return
    for adapter in adapters:
        if adapter.is_dora:
            why = "is a DoRA adapter, whose lengths do not add up: start from it alone, with weight 1"
            raise adapter.failure(why, Reason.UNSUPPORTED)
        if adapter.saved_modules:
            why = f"stores {', '.join(adapter.saved_modules)} whole, which does not add up"
            raise adapter.failure(f"{why}: start from it alone, with weight 1", Reason.UNSUPPORTED)
    for layer, sharing in _by_layer(adapters).items():
        _check_layer(adapters, layer, sharing, wished)


def _check_layer(adapters: list[StoredAdapter], name: str, sharing: list[int], wished: StartFrom) -> None:
    first = adapters[sharing[0]]
    ours = first.layers[name]
    for index in sharing[1:]:
        theirs = adapters[index].layers[name]
        if theirs.width != ours.width:
            told = f"{_size(theirs.width)}, and of {first.place} {_size(ours.width)}"
            raise adapters[index].failure(f"was made for another model: its update of {name} is {told}")
        if theirs.rank != ours.rank and wished.combination in EQUAL_RANKS:
            told = f"has rank {theirs.rank} and {first.place} rank {ours.rank} in {name}"
            raise adapters[index].failure(f"{told}; {wished.combination} needs equal ranks: choose cat or svd")


def _size(width: tuple[int, int]) -> str:
    return " × ".join(str(number) for number in width)


def _by_layer(adapters: list[StoredAdapter]) -> dict[str, list[int]]:
    """Which adapters update each layer, in a fixed order."""
    names = sorted({name for adapter in adapters for name in adapter.layers})
    return {name: [index for index, adapter in enumerate(adapters) if name in adapter.layers] for name in names}


def _copy(source: Path, target: Path) -> None:
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(source / name, target / name)


def _compose(adapters: list[StoredAdapter], wished: StartFrom, seed: int, target: Path) -> None:
    """Write the composition: A and B of each layer with scaling 1."""
    ranks = [layer.rank for adapter in adapters for layer in adapter.layers.values()]
    composer = Composer(
        wished.combination, wished.density or DENSITY, wished.rank or max(ranks), np.random.default_rng(seed)
    )
    sharing = _by_layer(adapters)
    tensors: dict[str, Any] = {}
    made: dict[str, int] = {}
    for name, indices in sharing.items():
        parts = [_part(adapters[index], name, wished.adapters[index].weight) for index in indices]
        a, b = composer.compose(parts)
        layer = adapters[indices[0]].layers[name]
        tensors |= {layer.a: np.ascontiguousarray(a), layer.b: np.ascontiguousarray(b)}
        made[name] = len(a)
    # One entry of metadata: several are written in a random order, and equal adapters have to be equal files.
    save_file(tensors, target / WEIGHTS, {ORIGINS: json.dumps(sharing)})
    (target / CONFIG).write_text(json.dumps(_config(adapters, made), indent=1), encoding="utf-8")
    log.info("%d adapters composed by %s, %d layers", len(adapters), wished.combination, len(made))


def _part(adapter: StoredAdapter, name: str, weight: float) -> Part:
    layer: StoredLayer = adapter.layers[name]
    return Part(*adapter.factors(layer), layer.scaling, weight)


def _config(adapters: list[StoredAdapter], ranks: dict[str, int]) -> dict[str, Any]:
    """PEFT's words for layers of these ranks; alpha is the rank, which means a scaling of 1."""
    rank = max(ranks.values())
    others = {name: own for name, own in ranks.items() if own != rank}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": adapters[0].config.get("base_model_name_or_path"),
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
    }


def origins(adapter: StoredAdapter, layer: str) -> Iterator[str]:
    """The fields that name the adapters which gave `layer` to a composition."""
    found = json.loads(adapter.file.metadata.get(ORIGINS, "{}")).get(layer, [0])
    return (f"{START_FROM}.adapters[{index}]" for index in found)
