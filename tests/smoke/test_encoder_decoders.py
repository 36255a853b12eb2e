"""sft on encoder-decoders: what each half is given, what a method is there, and what is refused.

Theory: such a model has two of everything (inputs, depths, attentions, caches), and a library that takes one for the
other says nothing. So losses are held against transformers' own, prefixes against a cache that is filled by hand, and
depths and widths differ in the tiny models.
"""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from torch.nn import functional
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration, DynamicCache, EncoderDecoderCache

import preparing
import tiny
import training
from finetune_api.reasons import Reason
from finetune_api.spec.job_spec import FineTuneJobSpec, Method
from finetune_trainer.artifacts import result as results
from finetune_trainer.evaluation.generation import answers
from finetune_trainer.methods import METHODS
from finetune_trainer.models import loading
from finetune_trainer.objectives import OBJECTIVES
from finetune_trainer.objectives.objective import Objective
from finetune_trainer.objectives.sft import EncoderDecoderSft
from finetune_trainer.planning import workload
from finetune_trainer.planning.memory import PlannedModel
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.stages.publish import publish
from tolerance import PASS, WEIGHT, InDouble, assert_close, doubled
from training import METHODS as OPTIONS
from training import Pair, Prepared, loss_of, prepared

HEAD = EncoderDecoderSft.head(())
PREFIXES = ["prefixTuning", "pTuningV2"]
INPUTS = ([7, 30, 41], [9, 8, 20, 33, 21, 64, 51, 60], [50, 12, 13, 59, 61])
ANSWERS = ([70, 71, 2], [80, 2], [90, 91, 92, 93, 94, 95, 2])
TOKENS = 5


def bart(folder: Path, seed: int = 0) -> Path:
    """Biases, learned positions, norms behind, an output with a bias of its own, halves of other depths and heads."""
    config = BartConfig(
        d_model=tiny.HIDDEN, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=4,
        encoder_ffn_dim=96, decoder_ffn_dim=80, max_position_embeddings=tiny.POSITIONS, decoder_start_token_id=2,
        **tiny.byte_vocabulary(),
    )  # fmt: skip
    return tiny.save(folder, BartForConditionalGeneration, config, tiny.byte_tokenizer(chat_template=None), seed)


MODELS = {"t5": tiny.t5, "flan_t5": tiny.flan_t5, "bart": bart}
NAMES = [pytest.param(name, marks=() if name == "t5" else pytest.mark.slow) for name in MODELS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in MODELS.items()}


def adapted(folder: Path, kind: str, **options: Any) -> Any:
    """In eval mode, with parameters of its own that are not those of the start."""
    torch.manual_seed(0)
    method, chosen = METHODS[kind], Method.model_validate({kind: options or OPTIONS[kind]}).options
    base = method.load(folder, HEAD, 0, chosen, torch.float32)
    model = method.apply(base, chosen, HEAD, steps=1, tokenizer=folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def objective_of(model: Any) -> Objective:
    return OBJECTIVES["sft"].suited(model.config)(model, 0, torch.float32)


def record(number: int) -> list[dict[str, Any]]:
    ids = np.array([*INPUTS[number], *ANSWERS[number]], dtype=np.int32)
    return [{"input_ids": ids, "loss_mask": np.arange(len(ids)) >= len(INPUTS[number])}]


# --- what is learnt ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_transformers_own_whatever_the_batch(name: str, kind: str, folders: dict[str, Path]) -> None:
    """Of one record what the model says with `labels`; of several, padded in both halves, the sum of theirs."""
    model = doubled(adapted(folders[name], kind))
    objective = objective_of(model)
    rows = [record(number) for number in range(3)]
    with torch.no_grad(), InDouble():
        alone = [float(loss_of(objective, model, [row])) for row in rows]
        together = [float(loss_of(objective, model, list(pair))) for pair in itertools.pairwise(rows)]
        plain = [plain_loss(model, *pair) for pair in zip(INPUTS, ANSWERS, strict=True)]
    assert_close(alone, plain, PASS)
    assert_close(together, [alone[0] + alone[1], alone[1] + alone[2]], PASS)


def plain_loss(model: Any, read: list[int], answer: list[int]) -> float:
    """transformers shifts the labels itself. Its own loss would have AdaLoRA's penalty in it."""
    logits = model(input_ids=torch.tensor([read]), labels=torch.tensor([answer])).logits
    return float(functional.cross_entropy(logits[0], torch.tensor(answer), reduction="sum"))


def test_a_batch_counts_what_is_read_and_what_is_learnt(folders: dict[str, Path]) -> None:
    """Answers begin with the start token, padding is neither read nor learnt."""
    batch = objective_of(adapted(folders["t5"], "lora")).collate([record(0), record(1)])
    assert batch["attention_mask"].tolist() == [[1] * 3 + [0] * 5, [1] * 8]
    assert batch["decoder_input_ids"].tolist() == [[0, 70, 71], [0, 80, 2]]
    assert batch["targets"].tolist() == [70, 71, 2, 80, 2]
    assert (batch["items"], batch["tokens"]) == (5, 16)


# --- generation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_generation_with_a_cache_equals_whole_passes(name: str, kind: str, folders: dict[str, Path]) -> None:
    """At each step the logits of a pass over all that was said so far."""
    model, read = doubled(adapted(folders[name], kind)), torch.tensor([INPUTS[1]])
    start = model.config.decoder_start_token_id
    with torch.no_grad(), InDouble():
        made = model.generate(
            input_ids=read, attention_mask=torch.ones_like(read), max_new_tokens=6, min_new_tokens=6, do_sample=False,
            output_logits=True, return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
        said = torch.tensor([[start]])
        for step, logits in enumerate(made.logits):
            whole = model(input_ids=read, decoder_input_ids=said, use_cache=False).logits[:, -1]
            assert_close(logits, whole, PASS)
            said = torch.cat([said, made.sequences[:, [step + 1]]], 1)


@pytest.mark.parametrize("kind", ["lora", "promptTuning", "prefixTuning", "uniPelt"])
def test_prompts_are_asked_as_inputs_are_prepared(kind: str, tmp_path: Path) -> None:
    """With an end; and a stop is heard during the answer, though PEFT copies what generation is given."""
    run = prepared(tmp_path, Pair("t5", "sft", kind), evaluation={"prompts": ["abc -> "], "maxNewTokens": 4})
    trainer, folder = run.trainer(), run.workspace.prepared / "tokenizer"
    asked: list[list[int]] = []
    encoder = trainer.method.untouched(trainer.model).get_encoder()
    words = AutoTokenizer.from_pretrained(folder)
    expected = words("abc -> ")["input_ids"] + [words.eos_token_id]
    encoder.embed_tokens.register_forward_hook(lambda _, inputs, output: asked.append(inputs[0].tolist()[0]))
    (text,) = answers(trainer, folder, run.run.spec.evaluation, lambda: None)
    assert asked == [expected]
    assert isinstance(text, str)
    with pytest.raises(KeyboardInterrupt):
        answers(trainer, folder, run.run.spec.evaluation, Stop().check)


@pytest.mark.parametrize("kind", ["lora", "promptTuning", "pTuningV2"])
def test_a_decoder_deeper_than_its_encoder_answers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is what whole passes say."""
    deep = partial(tiny.t5, num_layers=1, num_decoder_layers=3)
    monkeypatch.setitem(training.MODELS, "deep", deep)
    run = prepared(tmp_path, Pair("deep", "sft", kind), evaluation={"prompts": ["abc -> "], "maxNewTokens": 4})
    trainer, folder = run.trainer(), run.workspace.prepared / "tokenizer"
    (text,) = answers(trainer, folder, run.run.spec.evaluation, lambda: None)
    words, said = AutoTokenizer.from_pretrained(folder), [0]
    read = torch.tensor([words("abc -> ")["input_ids"] + [words.eos_token_id]])
    trainer.model.eval()
    with torch.no_grad():
        while len(said) < 5 and said[-1] != words.eos_token_id:
            logits = trainer.model(input_ids=read, decoder_input_ids=torch.tensor([said]), use_cache=False).logits
            said.append(int(logits[0, -1].argmax()))
    assert text == words.decode(said, skip_special_tokens=True).strip()


class Stop:
    """Cannot be copied, like what hears of signals."""

    def check(self) -> None:
        raise KeyboardInterrupt

    def __deepcopy__(self, memo: Any) -> None:
        raise TypeError("cannot be copied")


# --- virtual tokens ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["promptTuning", "pTuning"])
@pytest.mark.parametrize("name", NAMES)
def test_embeddings_stand_in_front_of_what_the_encoder_reads(name: str, kind: str, folders: dict[str, Path]) -> None:
    model, read = adapted(folders[name], kind, tokens=TOKENS), torch.tensor([INPUTS[1]])
    answer = torch.tensor([ANSWERS[2]])
    with torch.no_grad():
        virtual = model.prompt_encoder["default"](torch.arange(TOKENS)[None])
        embedded = model.get_base_model().get_input_embeddings()(read)
        together = torch.cat([virtual, embedded], 1)
        expected = model.get_base_model()(inputs_embeds=together, decoder_input_ids=answer).logits
        assert torch.equal(model(input_ids=read, decoder_input_ids=answer).logits, expected)
    assert virtual.shape[1] == TOKENS


@pytest.mark.parametrize("kind", PREFIXES)
@pytest.mark.parametrize("name", NAMES)
def test_every_layer_of_the_decoder_has_a_prefix_of_its_own(name: str, kind: str, folders: dict[str, Path]) -> None:
    """The same logits as over a cache that is filled by hand: layer i with pair 2i, modulo the odd number of pairs.

    Left to itself PEFT gives two layers of an even number the same one, and never uses half of what is learnt.
    """
    model, read = doubled(adapted(folders[name], kind, tokens=TOKENS)), torch.tensor([INPUTS[1]])
    answer, layers = torch.tensor([ANSWERS[2]]), {"bart": 3}.get(name, 2)
    pairs = layers if layers % 2 else layers + 1
    with torch.no_grad(), InDouble():
        numbers = model.prompt_encoder["default"](torch.arange(TOKENS)[None])[0].view(TOKENS, pairs, 2, 4, -1)
        places = [2 * layer % pairs for layer in range(layers)]
        own = [(numbers[:, p, 0].transpose(0, 1)[None], numbers[:, p, 1].transpose(0, 1)[None]) for p in places]
        cache = EncoderDecoderCache(DynamicCache(own), DynamicCache())
        base = model.get_base_model()
        expected = base(input_ids=read, decoder_input_ids=answer, past_key_values=cache).logits
        got = model(input_ids=read, decoder_input_ids=answer, use_cache=False).logits
        plain = base(input_ids=read, decoder_input_ids=answer).logits
    assert_close(got, expected, PASS)
    assert (got - plain).abs().max() > 0.01
    assert len(set(places)) == layers


@pytest.mark.parametrize("name", NAMES)
def test_a_prefix_starts_as_what_the_decoder_has_for_words(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each layer finds the keys and values that it computes for the words that were drawn."""
    words = torch.arange(20, 20 + TOKENS)
    monkeypatch.setattr("finetune_trainer.methods.virtual_tokens._random_words", lambda base, count: words)
    base = loading.load(folders[name], HEAD, 0)
    options = Method.model_validate({"pTuningV2": {"tokens": TOKENS}}).options
    model: Any = METHODS["pTuningV2"].apply(base, options, HEAD, steps=1)
    with torch.no_grad():
        found = model.get_prompt(1).self_attention_cache.layers
        read = words.unsqueeze(0)
        cache = base.model(input_ids=read, decoder_input_ids=read, use_cache=True).past_key_values.self_attention_cache
    for own, expected in zip(found, cache.layers, strict=False):  # one may be idle
        assert_close(own.keys, expected.keys, PASS)
        assert_close(own.values, expected.values, PASS)


@pytest.mark.parametrize(
    ("config", "method", "expected"),
    [
        ("t5-small", {"promptTuning": {"tokens": 20}}, 20 * 512),
        ("t5-small", {"pTuningV2": {"tokens": 20}}, 20 * 7 * 2 * 512),
        ("flan-t5-small", {"pTuningV2": {"tokens": 20}}, 20 * 9 * 2 * 384),
        ("flan-t5-small", {"lora": {"rank": 8, "targetModules": ["q", "v"]}}, 24 * 2 * 8 * (512 + 384)),
        ("t5-small", {"ia3": {}}, 18 * 2 * 512 + 12 * 2048),
        ("t5-small", {"adapter": {"placement": "houlsby"}}, 30 * (2 * 32 * 512 + 32 + 512)),
        ("t5-small", {"adapter": {}}, 12 * (2 * 32 * 512 + 32 + 512)),
        ("t5-small", {"bitFit": {"addBiases": True}}, 18 * 4 * 512 + 12 * (2048 + 512)),
        ("flan-t5-small", {"full": {}}, 76_961_152),
        ("t5-small", {"full": {}}, 60_506_624),
    ],
)
def test_the_count_equals_the_closed_formula(
    config: str, method: dict[str, Any], expected: int, tmp_path: Path
) -> None:
    """On the meta device, for the configurations of published models; those of `full` are the sizes of their files."""
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[config]))
    assert PlannedModel(tmp_path, spec_of(method), []).trainable == expected


T5_SMALL = {
    "model_type": "t5", "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8, "vocab_size": 32128,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1, "is_encoder_decoder": True, "n_positions": 512,
}  # fmt: skip
FLAN_T5_SMALL = T5_SMALL | {
    "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}  # fmt: skip
PUBLISHED = {"t5-small": T5_SMALL, "flan-t5-small": FLAN_T5_SMALL}


def spec_of(method: dict[str, Any], **stanzas: Any) -> FineTuneJobSpec:
    places = {
        "model": {"uri": "pvc://m/m"},
        "dataset": {"train": [{"uri": "pvc://d/d"}]},
        "output": {"uri": "pvc://o/o"},
    }
    return FineTuneJobSpec.model_validate({**places, "resources": {"gpus": 0}, "method": method, **stanzas})


# --- what is published ------------------------------------------------------------------------------------------------


def trained(folder: Path, name: str, kind: str, precision: str = "fp32", **spec: Any) -> Prepared:
    training = {"maxSteps": 2, "precision": precision}
    run = prepared(folder, Pair(name, "sft", kind), training=training, **spec)
    run.train()
    publish(run.run, run.workspace, Progress("publish"))
    return run


@pytest.mark.parametrize(
    "options", [{"dora": True}, {"init": "pissa"}, {"rsLora": True, "modulesToSave": ["wi_0"]}], ids=str
)
def test_plain_peft_loads_what_every_variant_of_lora_publishes(
    options: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    model, answer = adapted(folders["flan_t5"], "lora", **options), torch.tensor([ANSWERS[2]])
    inputs = {"input_ids": torch.tensor([INPUTS[1]]), "decoder_input_ids": answer}
    METHODS["lora"].save(model, tmp_path, "base", "main")
    again = PeftModel.from_pretrained(loading.load(folders["flan_t5"], HEAD, 0).model, tmp_path)
    with torch.no_grad(), InDouble():
        said, expected = (doubled(one)(**inputs).logits for one in (again, model))
    assert_close(said, expected, WEIGHT, computed_in=torch.float32)


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("kind", ["qlora", "qaLora", "prefixTuning", "uniPelt"])
def test_what_is_published_is_what_bf16_training_measured(kind: str, tmp_path: Path) -> None:
    """T5 keeps layers in fp32, adds its biases to scores in fp32, and casts by the dtype of a weight."""
    run = trained(tmp_path, "flan_t5", kind, precision="bf16")
    trainer, chosen = run.trainer(), run.run.spec.method
    base = METHODS[kind].load(tmp_path / "model", HEAD, 0, chosen.options, torch.bfloat16)
    trainer.model = METHODS[kind].reopen(base, run.workspace.result / results.ARTIFACT)
    loading.narrow_frozen(trainer.model, torch.bfloat16)
    metrics, _ = trainer.assess(run.stage().rows("test"), lambda: None)
    assert metrics == results.read(run.workspace.result).evaluation.tuned


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize("name", NAMES)
def test_a_whole_model_is_published_as_it_was_measured(name: str, tmp_path: Path) -> None:
    """Also where the output layer is no copy of the embeddings, of which T5's config says nothing."""
    run = trained(tmp_path, name, "full")
    trainer = run.trainer()
    trainer.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "output")
    metrics, _ = trainer.assess(run.stage().rows("test"), lambda: None)
    assert metrics == results.read(run.workspace.result).evaluation.tuned
    heads = trainer.model.get_output_embeddings().weight, trainer.model.get_input_embeddings().weight
    assert (heads[0] is heads[1]) == (name != "flan_t5")
    assert 'AutoModelForSeq2SeqLM.from_pretrained(".")' in (tmp_path / "output/README.md").read_text()


@pytest.mark.usefixtures("families")
@pytest.mark.parametrize(
    ("name", "kind"), [("flan_t5", "lora"), ("flan_t5", "qaLora"), ("t5", "ia3"), ("bart", "lora"), ("bart", "adaLora")]
)
def test_what_merges_into_a_decoder_merges_into_both_halves(name: str, kind: str, tmp_path: Path) -> None:
    """`publish` compares the logits itself; the plain model then scores what the adapter does."""
    run = trained(tmp_path, name, kind, output={"uri": f"file://{tmp_path}/output", "merge": True})
    trainer = run.trainer()
    trainer.model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "output/merged")
    metrics, _ = trainer.assess(run.stage().rows("test"), lambda: None)
    reported = results.read(run.workspace.result).evaluation.tuned["loss"]
    assert_close(metrics["loss"], reported, PASS, computed_in=torch.float32)


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whole runs of these can be prepared."""
    for name, make in MODELS.items():
        monkeypatch.setitem(training.MODELS, name, make)


# --- the plan ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_counts_what_is_loaded(name: str, folders: dict[str, Path]) -> None:
    """With its weights beside it and, as `finetune plan` has it, without."""
    loaded = loading.load(folders[name], HEAD, 0).model
    assert loading.blank(folders[name], HEAD).num_parameters() == loaded.num_parameters()


def test_inputs_and_answers_are_planned_apart(tmp_path: Path) -> None:
    """The longest of each, wherever they stand; offline each is as long as maxLength, of which T5 knows no end."""
    asked: list[dict[str, Any]] = []

    class Count(preparing.Count):
        def result(self, load: dict[str, Any]) -> Any:
            asked.append(load)
            return super().result(load)

    preparing.model(tmp_path / "model", template=None, model_type="t5", n_positions=512)
    rows = [*PAIRS, {"prompt": "q" * 60, "completion": "a"}, {"prompt": "q", "completion": "a" * 90}]
    source = preparing.jsonl(tmp_path / "a.jsonl", rows)
    run = preparing.run_of(tmp_path, source, resources={"gpus": 1}, training={"maxLength": 700})
    _, page, _ = preparing.prepared(run, Count)
    assert [(load["length"], load["answer"], load["packed"]) for load in asked] == [(61, 91, False)]
    assert (page.packing, page.max_length) == (False, 700)
    offline = workload.heaviest_load(tmp_path / "model", run.spec)
    assert (offline.length, offline.answer, offline.packed) == (700, 700, False)


PAIRS = [{"prompt": f"question {number}", "completion": f"answer {number}"} for number in range(40)]


@pytest.mark.parametrize(
    ("layers", "places"), [([3], {"encoder.block.3"}), ([1], {"encoder.block.1", "decoder.block.1"})]
)
def test_the_number_of_a_block_means_it_in_either_half(
    layers: list[int], places: set[str], folders: dict[str, Path]
) -> None:
    model = adapted(folders["t5"], "lora", layers=layers)
    found = {name.partition("model.model.")[2] for name, tensor in model.named_parameters() if tensor.requires_grad}
    assert {".".join(name.split(".")[:3]) for name in found} == places
    with pytest.raises(Failure, match="layers: 4: the model has blocks 0 to 3"):
        adapted(folders["t5"], "lora", layers=[4])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "stanzas", "reason", "message"),
    [
        (
            [{"text": "plain"}],
            {},
            Reason.DATASET_INVALID,
            "a.jsonl:1: plain text, and the model is an encoder-decoder, which learns to answer an input: map the "
            "columns of both with spec.dataset.train[0].columns.prompt and .completion, or choose a decoder (Llama, …)",
        ),
        (
            PAIRS,
            {"objective": {"sft": {"lossOn": "all"}}},
            Reason.BAD_SPEC,
            "spec.objective.sft.lossOn: an encoder-decoder writes answers alone, so its inputs carry no loss: leave "
            "lossOn out, or choose a decoder (Llama, …)",
        ),
        (
            PAIRS,
            {"dataset": {"packing": "always"}},
            Reason.BAD_SPEC,
            "spec.dataset.packing: an encoder reads all of a row at once, so records that share one would see each "
            "other: leave it out",
        ),
    ],
    ids=["text", "lossOn", "packing"],
)
def test_data_that_are_no_inputs_and_answers_are_refused(
    rows: list[Any], stanzas: dict[str, Any], reason: Reason, message: str, tmp_path: Path
) -> None:
    """On a CPU, in words of the spec, with what would work."""
    preparing.model(tmp_path / "model", model_type="t5", is_encoder_decoder=True)
    run = preparing.run_of(tmp_path, preparing.jsonl(tmp_path / "a.jsonl", rows), **stanzas)
    with pytest.raises(Failure) as refused:
        preparing.prepared(run)
    assert refused.value.reason is reason
    assert refused.value.message.removeprefix(f"file://{tmp_path}/") == message


@pytest.mark.parametrize(
    ("stanzas", "message"),
    [
        (
            {"objective": {"classification": {}}},
            "spec.objective: t5 is an encoder-decoder, which says what it has to say in words; let it write the labels "
            "as completions, or choose an encoder (BERT, …)",
        ),
        (
            {"method": {"bitFit": {}}},
            "spec.method.bitFit: 't5' models have no biases to move; set addBiases to give their linear layers biases "
            "of zero, or choose lora",
        ),
        (
            {"method": {"bitFit": {"addBiases": True}}, "output": {"uri": "pvc://o/o", "merge": True}},
            "output.merge: a plain 't5' model has no place for the biases that method.bitFit.addBiases adds: publish "
            "without it",
        ),
    ],
    ids=["classification", "bitFit", "merged bitFit"],
)
def test_what_has_no_place_in_an_encoder_decoder_is_refused_before_training(
    stanzas: dict[str, Any], message: str, folders: dict[str, Path]
) -> None:
    with pytest.raises(Failure) as refused:
        PlannedModel(folders["t5"], spec_of(stanzas.pop("method", {"lora": {}}), **stanzas), ["a", "b"])
    assert (refused.value.reason, refused.value.message) == (Reason.UNSUPPORTED, message)


def test_a_model_that_names_no_start_is_refused_before_training(tmp_path: Path) -> None:
    """Training and generation would start answers from different tokens. Either of its two files may say it."""
    folder = tiny.t5(tmp_path)
    config = json.loads((folder / "config.json").read_bytes())
    del config["decoder_start_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    assert loading.load(folder, HEAD, 0).model.config.decoder_start_token_id == 0
    (folder / "generation_config.json").unlink()
    with pytest.raises(Failure, match="decoder_start_token_id, the token that answers start from") as refused:
        PlannedModel(folder, spec_of({"lora": {}}), [])
    assert refused.value.reason is Reason.MODEL_INVALID
