"""`spec.method`: which parameters are trained. One option model per method, the field's names, its paper's defaults.

`default_learning_rate` is the rate that a job gets that names none: methods differ in it by a factor of a thousand.
What a method needs of the model's architecture only `prepare` can see; what options exclude each other stands here.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api import uris
from finetune_api.schema import ApiModel, Rule, exactly_one_of
from finetune_api.spec.credentials import REVISION_OF_THE_HUB, Auth, not_a_local_file, plain_path, stays_inside

ModuleName = Annotated[str, Field(min_length=1, max_length=256)]
ModuleNames = Annotated[list[ModuleName], Field(min_length=1, max_length=64)]
Rank = Annotated[int, Field(ge=1, le=1024)]
Alpha = Annotated[float, Field(gt=0, le=4096)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
VirtualTokens = Annotated[int, Field(ge=1, le=1024)]
LayerNumbers = Annotated[list[Annotated[int, Field(ge=0, le=1023)]], Field(min_length=1, max_length=1024)]

# `has`, though these fields have defaults: the API server checks the default of `method`, `lora: {}`, as it is written.
_EVERY_OR_NAMED = Rule(
    "!has(self.targetModules) || !('all-linear' in self.targetModules) || self.targetModules.size() == 1",
    "targetModules: all-linear already means every linear layer: name it alone, or name layers",
)


class MethodOptions(ApiModel):
    """What every method has."""

    default_learning_rate: ClassVar[float]
    is_mergeable: ClassVar[bool] = True
    """Whether what was trained can become part of the base model's own weights."""
    is_plain_lora: ClassVar[bool] = False
    """Whether an ordinary LoRA adapter comes out, which inference servers take as it is."""
    takes_packed_rows: ClassVar[bool] = True
    """Whether several records may share a row: virtual tokens stand in front of a row, not of each record."""
    publishes_whole_model: ClassVar[bool] = False
    """Whether what is published is a model, and no adapter of one."""
    needs_bitsandbytes: ClassVar[bool] = False
    takes_gradient_checkpointing: ClassVar[bool] = True
    """Whether layers may be computed twice: that is done without a cache, and a cache can hold what is trained."""

    @property
    def positions(self) -> int:
        """Positions of the model that every row loses to virtual tokens."""
        return 0

    @property
    def adapters(self) -> "list[AdapterSource]":
        """Stored adapters that training starts from."""
        return []


class AdapterSource(ApiModel):
    """A stored LoRA adapter."""

    rules: ClassVar = (
        not_a_local_file("uri"),
        stays_inside("uri"),
        plain_path("uri"),
        REVISION_OF_THE_HUB,
        Rule("!has(self.weight) || self.weight != 0.0", "weight: 0 adds nothing: leave the adapter out"),
    )

    uri: Annotated[
        str, Field(pattern=uris.ADAPTER_PATTERN, max_length=1024, json_schema_extra={"x-message": uris.ADAPTER_FORMS})
    ]
    """Where it lives: `pvc://claim/path` or `hf://org/name` for a folder in PEFT's layout (adapter_config.json,
    adapter_model.safetensors), or `job://name` for what that FineTuneJob of the same namespace publishes, which is
    waited for."""
    revision: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """Branch, tag or commit of an `hf://` adapter. Default: the main branch."""
    weight: Annotated[float, Field(ge=-16, le=16)] = 1
    """Its share. Default: 1. Shares need not add up to 1; a negative one takes the adapter's update away."""
    auth: Auth | None = None
    """Needed for gated or private adapters."""


class StartFrom(ApiModel):
    """Stored LoRA adapters that become one. Each adds an update ΔW = scaling · B·A to a layer; `combination` says what
    becomes of them."""

    rules: ClassVar = (
        Rule(
            "!has(self.rank) || self.combination in ['svd', 'tiesSvd', 'dareLinearSvd', 'dareTiesSvd']",
            "rank belongs to combinations that end in svd: the others have the adapters' ranks",
        ),
        Rule(
            "!has(self.density) || !(self.combination in ['linear', 'cat', 'svd'])",
            "density belongs to ties and dare: the other combinations drop nothing",
        ),
    )

    adapters: Annotated[list[AdapterSource], Field(min_length=1, max_length=16)]
    """The adapters. `cat` takes one alone with weight 1 exactly as it is: training goes on where it ended."""
    combination: Literal[
        "cat", "svd", "linear", "ties", "dareLinear", "dareTies", "tiesSvd", "dareLinearSvd", "dareTiesSvd"
    ] = "cat"
    """`cat`: Σ weight·ΔW exactly; ranks add up. `svd`: the closest to that sum of a smaller `rank`. `linear`: A and B
    are summed apart, which is no larger than one adapter and no more than near the sum; needs equal ranks, as do `ties`
    (keep the largest entries, agree on signs, average those that agree; Yadav et al. 2023, arXiv:2306.01708),
    `dareLinear` (drop entries at random, scale up the rest; Yu et al. 2023, arXiv:2311.03099) and `dareTies` (drop,
    then agree), over A and B apart. `tiesSvd`, `dareLinearSvd` and `dareTiesSvd` do the same to ΔW, as the papers do,
    and take the closest of `rank`: slow on large models. Names and arithmetic are those of PEFT."""
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the entries that ties and dare keep. Default: 0.5."""
    rank: Rank | None = None
    """Rank of combinations that end in svd. Default: the largest of the adapters'."""


_SHAPE_OF_THE_START = (
    "self.rank == 16 && self.alpha == 32.0 && self.targetModules == ['all-linear'] && !self.rsLora && !self.dora && "
    "self.init == 'zero' && self.rankPattern.size() == 0 && self.alphaPattern.size() == 0 && !has(self.layers) && "
    "!has(self.modulesToSave)"
)


class Lora(MethodOptions):
    """Low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685)."""

    default_learning_rate: ClassVar = 2e-4
    is_plain_lora: ClassVar = True
    rules: ClassVar = (
        _EVERY_OR_NAMED,
        Rule(
            "!(has(self.init) && has(self.dora)) || self.init != 'pissa' || !self.dora",
            "init: pissa takes the update out of the base weight, which dora normalises: choose one",
        ),
        Rule(
            f"!has(self.startFrom) || ({_SHAPE_OF_THE_START})",
            "startFrom: rank, alpha, targetModules, layers, modulesToSave, rsLora, dora, init and the patterns are "
            "those of the stored adapters: leave them out",
        ),
    )

    rank: Rank = 16
    """Rank r of the update B·A."""
    alpha: Alpha = 32
    """The update is scaled by alpha / rank."""
    dropout: Dropout = 0
    """Dropout on the adapter's input."""
    target_modules: ModuleNames = ["all-linear"]
    """Names (or name endings) of the linear layers that get an adapter; `all-linear` means all but the output layer."""
    rs_lora: bool = False
    """Scale by alpha / √rank, which keeps high ranks learning (rsLoRA, Kalajdzievski 2023, arXiv:2312.03732)."""
    dora: bool = False
    """Learn direction and length of each weight column apart (DoRA, Liu et al. 2024, arXiv:2402.09353)."""
    init: Literal["zero", "pissa"] = "zero"
    """`zero`: B starts at 0. `pissa`: A and B start as the principal singular vectors of the weight (PiSSA, Meng et al.
    2024, arXiv:2404.02948); published as an ordinary adapter of twice the rank."""
    plus_ratio: Annotated[float, Field(ge=1, le=1024)] | None = None
    """Learning rate of B as a multiple of that of A (LoRA+, Hayou et al. 2024, arXiv:2402.12354, which uses 16).
    Default: the same rate."""
    rank_pattern: Annotated[dict[ModuleName, Rank], Field(max_length=64)] = {}
    """Other ranks for layers whose name ends so."""
    alpha_pattern: Annotated[dict[ModuleName, Alpha], Field(max_length=64)] = {}
    """Other alphas for layers whose name ends so."""
    layers: LayerNumbers | None = None
    """Numbers of the blocks that get adapters, from 0. Default: all."""
    modules_to_save: ModuleNames | None = None
    """Modules that are trained whole and published with the adapter, such as `lm_head`."""
    start_from: StartFrom | None = None
    """Start from stored adapters, combined into one, instead of from nothing. Rank, alpha, layers and the like are then
    theirs. With `training.maxSteps: 0` nothing is trained: the combination is measured and published as it is."""

    @property
    def adapters(self) -> list[AdapterSource]:
        return self.start_from.adapters if self.start_from else []


class QLora(MethodOptions):
    """LoRA beside weights that are held in 4 bits (Dettmers et al. 2023, arXiv:2305.14314)."""

    default_learning_rate: ClassVar = 2e-4
    needs_bitsandbytes: ClassVar = True
    is_plain_lora: ClassVar = True
    rules: ClassVar = (_EVERY_OR_NAMED,)

    rank: Rank = 16
    """Rank r of the update B·A."""
    alpha: Alpha = 32
    """The update is scaled by alpha / rank."""
    dropout: Dropout = 0
    """Dropout on the adapter's input."""
    target_modules: ModuleNames = ["all-linear"]
    """Names (or name endings) of the linear layers that get an adapter; `all-linear` means all but the output layer."""
    quantization: Literal["nf4", "fp4"] = "nf4"
    """Code of the 4-bit weights; `nf4` is made for weights that are normally distributed."""
    double_quantization: bool = True
    """Quantize the scales too: 0.37 bits a parameter less."""


class QaLora(MethodOptions):
    """LoRA that pools its input by the groups of a 4-bit base, so that it merges into their zero points exactly (Xu et
    al. 2023, arXiv:2309.14717)."""

    default_learning_rate: ClassVar = 2e-4
    rules: ClassVar = (_EVERY_OR_NAMED,)

    rank: Rank = 16
    """Rank r of the update B·A."""
    alpha: Alpha = 32
    """The update is scaled by alpha / rank."""
    target_modules: ModuleNames = ["all-linear"]
    """Names (or name endings) of the linear layers that are quantized and get an adapter; `all-linear` means all but
    the output layer."""
    group_size: Annotated[int, Field(ge=8, le=1024)] = 32
    """Weights that share a scale and a zero point; must divide the input width of every target."""


class AdaLora(MethodOptions):
    """LoRA as P·Λ·Q whose ranks are distributed over the layers while it trains (Zhang et al. 2023,
    arXiv:2303.10512)."""

    default_learning_rate: ClassVar = 1e-3
    rules: ClassVar = (
        _EVERY_OR_NAMED,
        Rule("self.targetRank <= self.initialRank", "targetRank: the budget shrinks from initialRank to targetRank"),
        Rule("self.warmup + self.settled < 1.0", "warmup and settled: together they must leave some steps to prune in"),
    )

    initial_rank: Rank = 12
    """Rank of every layer at the start."""
    target_rank: Rank = 8
    """Mean rank that is left at the end."""
    alpha: Alpha = 32
    """The update is scaled by alpha / rank."""
    dropout: Dropout = 0
    """Dropout on the adapter's input."""
    target_modules: ModuleNames = ["all-linear"]
    """Names (or name endings) of the linear layers that get an adapter; `all-linear` means all but the output layer."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the run's steps before ranks shrink."""
    settled: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the run's steps, at its end, in which ranks stand still."""
    every_steps: Annotated[int, Field(ge=1, le=10_000)] = 10
    """Steps between two distributions of the budget."""
    orthogonality: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Weight of the penalty that keeps P and Q orthogonal."""
    lambda_ratio: Annotated[float, Field(ge=1, le=1024)] = 10
    """Learning rate of Λ as a multiple of that of P and Q. P and Q keep their length, so the size of the update is Λ's,
    which starts at 0 and moves by about its rate a step. 1: one rate for all, as in the paper, for long runs."""
    sensitivity_decay: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """β₁: decay of the moving average of importance."""
    uncertainty_decay: Annotated[float, Field(gt=0, lt=1)] = 0.85
    """β₂: decay of the moving average of its uncertainty."""


class Ia3(MethodOptions):
    """One learned factor per channel of keys, values and feed-forward activations (Liu et al. 2022,
    arXiv:2205.05638)."""

    default_learning_rate: ClassVar = 3e-3

    target_modules: ModuleNames | None = None
    """Names of the layers whose output is scaled: keys, values, and those in feedforwardModules, whose input is scaled.
    Default: by the architecture."""
    feedforward_modules: ModuleNames | None = None
    """Those of targetModules whose input is scaled. Default: by the architecture."""


class BitFit(MethodOptions):
    """Only the biases are trained (Ben Zaken et al. 2021, arXiv:2106.10199)."""

    default_learning_rate: ClassVar = 1e-3

    add_biases: bool = False
    """For models without biases (Llama): give their linear layers biases of zero, which change nothing at first.
    Without it such a model is refused."""


class VirtualTokenOptions(MethodOptions):
    """What the methods have that learn virtual tokens in front of the input."""

    is_mergeable: ClassVar = False
    takes_packed_rows: ClassVar = False

    tokens: VirtualTokens = 20
    """Virtual tokens."""

    @property
    def positions(self) -> int:
        return self.tokens


class PromptTuning(VirtualTokenOptions):
    """Embeddings of virtual tokens in front of the input (Lester et al. 2021, arXiv:2104.08691)."""

    default_learning_rate: ClassVar = 3e-2

    init_text: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    """Start from the embeddings of this text, repeated or cut to `tokens`. Default: from random words of the
    vocabulary."""


class PrefixTuning(VirtualTokenOptions):
    """Keys and values of virtual tokens in every layer, reparametrised by an MLP while they train (Li and Liang 2021,
    arXiv:2101.00190)."""

    default_learning_rate: ClassVar = 1e-3
    takes_gradient_checkpointing: ClassVar = False

    tokens: VirtualTokens = 10
    """Virtual tokens."""
    projection_size: Annotated[int, Field(ge=1, le=16384)] = 512
    """Hidden width of the MLP; it is dropped when the prefix is published."""


class PTuning(VirtualTokenOptions):
    """Embeddings of virtual tokens computed by a small network (P-tuning, Liu et al. 2021, arXiv:2103.10385)."""

    default_learning_rate: ClassVar = 1e-3

    encoder: Literal["mlp", "lstm"] = "mlp"
    """The network; it is dropped when the prompt is published."""
    encoder_size: Annotated[int, Field(ge=1, le=16384)] = 128
    """Its hidden width."""


class PTuningV2(VirtualTokenOptions):
    """Keys and values of virtual tokens in every layer, learned as they are (P-tuning v2, Liu et al. 2021,
    arXiv:2110.07602)."""

    default_learning_rate: ClassVar = 1e-2
    takes_gradient_checkpointing: ClassVar = False


class Adapter(MethodOptions):
    """Bottleneck layers behind the sublayers of each block, with a residual connection."""

    default_learning_rate: ClassVar = 1e-3
    is_mergeable: ClassVar = False

    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """`houlsby`: behind attention and feed-forward (Houlsby et al. 2019, arXiv:1902.00751); `pfeiffer`: behind the
    feed-forward alone (Pfeiffer et al. 2020, arXiv:2005.00247), half the parameters."""
    reduction_factor: Annotated[int, Field(ge=1, le=4096)] = 16
    """Width of the model over width of the bottleneck."""
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """Between down- and up-projection."""
    dropout: Dropout = 0
    """Dropout on the bottleneck's output."""


class UniPelt(MethodOptions):
    """LoRA, prefix and bottleneck adapter in every block, each behind a learned gate (Mao et al. 2021,
    arXiv:2110.07577)."""

    default_learning_rate: ClassVar = 5e-4
    is_mergeable: ClassVar = False

    rank: Rank = 8
    """Rank of the LoRA update of queries and values."""
    alpha: Alpha = 8
    """It is scaled by alpha / rank, besides its gate."""
    prefix_tokens: VirtualTokens = 10
    """Virtual tokens of the prefix."""
    prefix_projection_size: Annotated[int, Field(ge=1, le=16384)] = 512
    """Hidden width of the MLP that reparametrises the prefix; it is dropped when the result is published."""
    bottleneck_size: Annotated[int, Field(ge=1, le=16384)] = 48
    """Width of the adapter's bottleneck."""


class Full(MethodOptions):
    """All parameters are trained."""

    default_learning_rate: ClassVar = 2e-5
    publishes_whole_model: ClassVar = True


START_FROM = "spec.method.lora.startFrom"
MEMORY_SAVERS = ("lora", "qlora")
"""Methods to advise where another does not fit, the one that changes least first."""


class Method(ApiModel):
    """Which parameters are trained. Set exactly one member; LoRA unless told otherwise."""

    lora: Lora | None = None
    q_lora: Annotated[QLora | None, Field(alias="qlora")] = None
    qa_lora: QaLora | None = None
    ada_lora: AdaLora | None = None
    ia3: Ia3 | None = None
    bit_fit: BitFit | None = None
    prompt_tuning: PromptTuning | None = None
    prefix_tuning: PrefixTuning | None = None
    p_tuning: PTuning | None = None
    p_tuning_v2: Annotated[PTuningV2 | None, Field(alias="pTuningV2")] = None
    adapter: Adapter | None = None
    uni_pelt: UniPelt | None = None
    full: Full | None = None

    rules: ClassVar = (
        exactly_one_of(
            "lora", "qlora", "qaLora", "adaLora", "ia3", "bitFit", "promptTuning", "prefixTuning", "pTuning",
            "pTuningV2", "adapter", "uniPelt", "full",
        ),
    )  # fmt: skip

    @property
    def kind(self) -> str:
        """The wire name of the member that is set."""
        return str(type(self).model_fields[self._member].alias)

    @property
    def options(self) -> MethodOptions:
        """The member that is set."""
        options: MethodOptions = getattr(self, self._member)
        return options

    def starting_from(self, start: StartFrom) -> "Method":
        """The same method with another start; only for one that starts from stored adapters."""
        options = self.options.model_copy(update={"start_from": start})
        return self.model_copy(update={self._member: options})

    @property
    def start_from(self) -> StartFrom | None:
        """What training starts from, where that is not nothing; its field is START_FROM."""
        return self.lora.start_from if self.lora else None

    def with_artifacts(self, artifacts: Mapping[str, str]) -> "Method":
        """The same method with `job://name` replaced by the URI that `artifacts` has for the name."""
        start = self.start_from
        if start is None:
            return self
        return self.starting_from(start.model_copy(update={"adapters": [_found(a, artifacts) for a in start.adapters]}))

    @property
    def _member(self) -> str:
        (name,) = [name for name in type(self).model_fields if getattr(self, name) is not None]
        return name


def _found(adapter: AdapterSource, artifacts: Mapping[str, str]) -> AdapterSource:
    place = uris.parse(adapter.uri)
    return (
        adapter.model_copy(update={"uri": artifacts.get(place.name, adapter.uri)}) if place.scheme == "job" else adapter
    )
