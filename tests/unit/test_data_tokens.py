"""Where loss is, token by token; where a record is cut; when nothing is left of it."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import preparing
from finetune_trainer.data.record_types import Kind
from finetune_trainer.data.records import Record
from finetune_trainer.data.rendering import Renderer
from finetune_trainer.data.tokenization import Encoder, Example
from finetune_trainer.pretrained import tokenizer as tokenizers_of_models
from finetune_trainer.runtime.failures import Failure

CHAT = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "é😀"},
    {"role": "user", "content": "r"},
    {"role": "assistant", "content": "b"},
]


def example(
    folder: Path,
    kind: Kind,
    record: Record,
    limit: int = 1000,
    loss_on_all: bool = False,
    in_pairs: bool = False,
    **model: Any,
) -> tuple[str, str, Example]:
    """All of the text that the tokens make, the part of it that is learnt, and the tokens."""
    path = folder / "model"
    if not path.exists():
        preparing.model(path, **model)
    loaded = tokenizers_of_models.load(path, "the model", None)
    text = Renderer(kind, loaded, loss_on_all, in_pairs)(record)
    (found,) = Encoder(loaded, limit).examples([text])
    decode = loaded.backend.decode
    learnt = decode(found.ids[found.mask].tolist(), skip_special_tokens=False)
    return decode(found.ids.tolist(), skip_special_tokens=False), learnt, found


def test_chats_teach_the_answers_and_their_ends(tmp_path: Path) -> None:
    """Characters of several bytes are several tokens, all of them learnt; what follows the last end is cut off."""
    whole, learnt, found = example(tmp_path, "chat", Record(messages=CHAT))
    assert whole == (
        "<|start|>user\nq<|end|>\n<|start|>assistant\né😀<|end|>\n<|start|>user\nr<|end|>\n<|start|>assistant\nb<|end|>"
    )
    assert learnt == "é😀<|end|>b<|end|>"
    assert found.mask.sum() == 2 + 4 + 1 + 1 + 1
    assert found.fate == "kept"


def test_loss_on_all_teaches_everything_that_has_a_predecessor(tmp_path: Path) -> None:
    _, _, found = example(tmp_path, "chat", Record(messages=CHAT), loss_on_all=True)
    assert not found.mask[0]
    assert found.mask[1:].all()


def test_a_prompt_is_a_question_to_a_chat_model(tmp_path: Path) -> None:
    whole, learnt, _ = example(tmp_path, "prompt", Record(prompt="q", text="a b "))
    assert whole == "<|start|>user\nq<|end|>\n<|start|>assistant\na b <|end|>"
    assert learnt == "a b <|end|>"


def test_a_prompt_is_a_beginning_to_a_model_without_a_template(tmp_path: Path) -> None:
    """Plain concatenation, and one end."""
    whole, learnt, _ = example(tmp_path, "prompt", Record(prompt="1+1=", text="2"), template=None)
    assert (whole, learnt) == ("1+1=2<|end|>", "2<|end|>")


def test_an_end_that_the_text_brings_is_not_doubled(tmp_path: Path) -> None:
    whole, learnt, _ = example(tmp_path, "prompt", Record(prompt="p", text="a<|end|>"), template=None)
    assert (whole, learnt) == ("pa<|end|>", "a<|end|>")


def test_plain_text_is_learnt_whole(tmp_path: Path) -> None:
    whole, learnt, found = example(tmp_path, "text", Record(text="abc"))
    assert (whole, learnt) == ("abc<|end|>", "bc<|end|>")
    assert found.mask.tolist() == [False, True, True, True]


def test_a_token_across_the_border_belongs_to_the_prompt(tmp_path: Path) -> None:
    """Merged tokens would teach the model to write what it was given."""
    merging = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2, "ab": 3, "<|end|>": 4}, merges=[("a", "b")]))
    merging.add_special_tokens(["<|end|>"])
    record = Record(prompt="ca", text="bc")
    _, _, found = example(tmp_path, "prompt", record, template=None, tokenizer=merging)
    assert found.ids.tolist() == [2, 3, 2, 4]
    assert found.mask.tolist() == [False, False, True, True]


def test_a_beginning_that_the_tokenizer_adds_is_kept_and_its_end_is_ours(tmp_path: Path) -> None:
    """Llama's tokenizer puts a first token before a text; an encoder's would put one after it too."""
    wrapping = preparing.byte_tokenizer()
    wrapping.post_processor = processors.TemplateProcessing(
        single="<|start|> $A <|pad|>", special_tokens=[("<|start|>", 1), ("<|pad|>", 0)]
    )
    whole, learnt, found = example(tmp_path, "text", Record(text="ab"), tokenizer=wrapping)
    assert (whole, learnt) == ("<|start|>ab<|end|>", "ab<|end|>")
    assert found.mask.tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("limit", "fate", "tokens"), [(42, "kept", 42), (41, "truncated", 41), (38, "truncated", 38), (37, "dropped", 37)]
)
def test_long_records_are_cut_and_dropped_when_no_answer_is_left(
    tmp_path: Path, limit: int, fate: str, tokens: int
) -> None:
    """`<|start|>user\\nqqqqqqqqqqqqqqqqqq<|end|>\\n<|start|>assistant\\n` are 37 tokens, `abcd<|end|>` five."""
    _, _, found = example(tmp_path, "prompt", Record(prompt="q" * 18, text="abcd"), limit=limit)
    assert (found.fate, len(found.ids)) == (fate, tokens)


@pytest.mark.parametrize(
    ("kind", "record"),
    [
        ("text", Record(text="")),
        ("prompt", Record(prompt="p", text="")),
        ("chat", Record(messages=CHAT[:1])),
        ("labelled", Record(text="", label="x")),
    ],
)
def test_records_with_nothing_to_learn_are_dropped(tmp_path: Path, kind: Kind, record: Record) -> None:
    assert example(tmp_path, kind, record)[2].fate == "dropped"


def bert() -> Tokenizer:
    tokenizer = Tokenizer(
        models.WordPiece(vocab={"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "a": 3, "b": 4}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=9)
    return tokenizer


def test_labelled_texts_keep_the_encoders_own_ends(tmp_path: Path) -> None:
    """Whatever cut or padding was saved with the tokenizer is ours to decide; a cut keeps the token at the end."""
    record = Record(text="A b a B a", label="x")
    whole = example(tmp_path, "labelled", record, tokenizer=bert())[2]
    assert (whole.ids.tolist(), whole.fate) == ([0, 3, 4, 3, 4, 3, 1], "kept")
    cut = example(tmp_path, "labelled", record, limit=5)[2]
    assert (cut.ids.tolist(), cut.fate) == ([0, 3, 4, 3, 1], "truncated")


def test_an_empty_answer_changes_nothing_for_its_neighbours(tmp_path: Path) -> None:
    """Records are tokenised together: the first of a batch must not decide who writes the special tokens."""
    wrapping = preparing.byte_tokenizer()
    wrapping.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    loaded = tokenizers_of_models.load(preparing.model(tmp_path / "model", tokenizer=wrapping), "the model", None)
    render = Renderer("prompt", loaded, False)
    empty, full = render(Record(prompt="p", text="")), render(Record(prompt="p", text="a"))
    together = Encoder(loaded, 100).examples([empty, full])
    (alone,) = Encoder(loaded, 100).examples([full])
    assert together[0].fate == "dropped"
    assert together[1].ids.tolist() == alone.ids.tolist()


def test_chat_records_need_a_template(tmp_path: Path) -> None:
    with pytest.raises(Failure) as caught:
        example(tmp_path, "chat", Record(messages=CHAT), template=None)
    assert caught.value.message == (
        "the tokenizer has no chat template, and chat records need one: set spec.dataset.template (Jinja)"
    )


def test_equal_records_share_an_identity(tmp_path: Path) -> None:
    """The label counts: the same text with another label is another record."""
    loaded = tokenizers_of_models.load(preparing.model(tmp_path / "model"), "the model", None)
    render = Renderer("labelled", loaded, False)
    same = [render(Record(text="t", label="x")).identity for _ in range(2)]
    assert same[0] == same[1] != render(Record(text="t", label="y")).identity


# --- inputs and answers, apart ----------------------------------------------------------------------------------------


def pair(folder: Path, kind: Kind, record: Record, **options: Any) -> tuple[str, str, Example]:
    """What the encoder reads, what the decoder writes, and the tokens."""
    whole, answer, found = example(folder, kind, record, in_pairs=True, **options)
    return whole.removesuffix(answer), answer, found


def ending() -> Tokenizer:
    """As T5's, which puts an end after each text."""
    tokenizer = preparing.byte_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|end|>", special_tokens=[("<|end|>", 2)])
    return tokenizer


@pytest.mark.parametrize("tokenizer", [preparing.byte_tokenizer, ending])
def test_an_input_and_its_answer_have_an_end_each(tmp_path: Path, tokenizer: Any) -> None:
    """Once, whether the tokenizer writes it or the text does; and every token of the answer is learnt."""
    read, written, found = pair(
        tmp_path, "prompt", Record(prompt="1+1=", text="2"), template=None, tokenizer=tokenizer()
    )
    assert (read, written) == ("1+1=<|end|>", "2<|end|>")
    assert found.mask.tolist() == [False] * 5 + [True] * 2
    read, written, _ = pair(tmp_path, "prompt", Record(prompt="p", text="a<|end|>"))
    assert (read, written) == ("p<|end|>", "a<|end|>")


def test_a_template_writes_the_input(tmp_path: Path) -> None:
    """A prompt is a question, as samples put it; of a chat the last answer is learnt, and what follows is left out."""
    question = "<|start|>user\nq<|end|>\n<|start|>assistant\n"
    read, written, _ = pair(tmp_path, "prompt", Record(prompt="q", text="a"), tokenizer=ending())
    assert (read, written) == (f"{question}<|end|>", "a<|end|>")
    read, written, _ = pair(tmp_path, "chat", Record(messages=[*CHAT, CHAT[0]]))
    assert read == f"{question}é😀<|end|>\n<|start|>user\nr<|end|>\n<|start|>assistant\n<|end|>"
    assert written == "b<|end|>"


@pytest.mark.parametrize(
    ("limit", "fate", "read", "written"),
    [
        (9, "kept", "12345678<|end|>", "abcd<|end|>"),
        (8, "truncated", "1234567<|end|>", "abcd<|end|>"),
        (5, "truncated", "1234<|end|>", "abcd<|end|>"),
        (4, "truncated", "123<|end|>", "abcd"),
    ],
)
def test_inputs_and_answers_are_cut_each_by_itself(
    tmp_path: Path, limit: int, fate: str, read: str, written: str
) -> None:
    """An input keeps its end; an answer that was cut did not end there."""
    record = Record(prompt="12345678", text="abcd")
    found = pair(tmp_path, "prompt", record, limit=limit, template=None)
    assert (found[2].fate, *found[:2]) == (fate, read, written)


@pytest.mark.parametrize(
    ("kind", "record"), [("prompt", Record(prompt="p", text="")), ("chat", Record(messages=CHAT[:1]))]
)
def test_inputs_without_an_answer_are_dropped(tmp_path: Path, kind: Kind, record: Record) -> None:
    assert pair(tmp_path, kind, record, tokenizer=ending())[2].fate == "dropped"


def test_equal_inputs_with_other_answers_are_other_records(tmp_path: Path) -> None:
    loaded = tokenizers_of_models.load(preparing.model(tmp_path / "model"), "the model", None)
    render = Renderer("prompt", loaded, False, in_pairs=True)
    same = [render(Record(prompt="p", text="a")).identity for _ in range(2)]
    assert same[0] == same[1] != render(Record(prompt="p", text="b")).identity
