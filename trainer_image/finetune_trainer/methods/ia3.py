"""IA³: one learned factor per channel of keys, values and feed-forward activations (Liu et al. 2022, arXiv:2205.05638),
by PEFT."""

from collections.abc import Iterable

import peft

from finetune_api.reasons import Reason
from finetune_api.spec.methods import Ia3 as Options
from finetune_trainer.methods.method import linear_layers, target_layers
from finetune_trainer.methods.peft_method import PeftMethod, is_transposed
from finetune_trainer.models.loading import Head, LoadedModel
from finetune_trainer.runtime.failures import Failure

FIELD = "spec.method.ia3"
KEYS_AND_VALUES = (
    ("k_proj", "v_proj"), ("key", "value"), ("k_lin", "v_lin"), ("k", "v"), ("query_key_value",), ("qkv_proj",),
    ("Wqkv",), ("c_attn",),
)  # fmt: skip
"""What architectures call these layers; the last four are one layer with the queries, which are scaled with them."""
FEEDFORWARD = ("down_proj", "fc2", "dense_4h_to_h", "lin2", "wo", "w2", "fc_out", "Wo", "output.dense", "c_proj")
"""What they call the layer that reads the feed-forward activations; the last two are also a name in their attention."""


class Ia3(PeftMethod):
    def config(self, base: LoadedModel, options: Options, head: Head, steps: int) -> peft.IA3Config:
        feedforward = options.feedforward_modules
        if feedforward is None:
            feedforward = _feedforward(base) if options.target_modules is None else []
        targets = options.target_modules or [*_keys_and_values(base), *feedforward]
        target_layers(base, f"{FIELD}.targetModules", targets)
        missing = sorted(set(feedforward) - set(targets))
        if missing:
            raise Failure(Reason.BAD_SPEC, f"{FIELD}.feedforwardModules: {missing[0]!r} is not among targetModules")
        return peft.IA3Config(
            target_modules=list(targets),
            feedforward_modules=list(feedforward),
            modules_to_save=list(base.fresh) or None,
            task_type=head.peft_task,
            fan_in_fan_out=is_transposed(base),
        )


def _keys_and_values(base: LoadedModel) -> list[str]:
    leaves = {name.rpartition(".")[2] for name in linear_layers(base)}
    return next((list(names) for names in KEYS_AND_VALUES if leaves.issuperset(names)), None) or _unknown(leaves)


def _feedforward(base: LoadedModel) -> list[str]:
    """Whole names, because the short one may be that of a layer in the attention too."""
    layers = [name for name in linear_layers(base) if not {"attention", "attn", "self_attn"} & set(name.split("."))]
    found = next((names for leaf in FEEDFORWARD if (names := _ending(layers, leaf))), None)
    return found or _unknown(name.rpartition(".")[2] for name in layers)


def _ending(layers: list[str], leaf: str) -> list[str]:
    return [name for name in layers if name.endswith(f".{leaf}")]


def _unknown(leaves: Iterable[str]) -> list[str]:
    raise Failure(
        Reason.BAD_SPEC,
        f"{FIELD}.targetModules: no default for this architecture; name those of keys, values and the feed-forward "
        f"output (those in feedforwardModules too); linear layers are: {', '.join(sorted(set(leaves)))}",
    )
