"""The fixtures that other tests stand on: their files must be what a user's would be."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import tiny


@pytest.mark.parametrize("build", [tiny.llama, tiny.gpt2])
def test_decoder_folders_load_and_run(build, tmp_path: Path) -> None:
    """A decoder loads by the Auto classes, and its tokenizer returns any text unchanged."""
    folder = build(tmp_path / "model")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

    ids = tokenizer("héllo  wörld\n", return_tensors="pt").input_ids

    assert tokenizer.decode(ids[0]) == "héllo  wörld\n"
    assert model(ids).logits.shape == (1, ids.shape[1], len(tokenizer))
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)


def test_chats_render_with_one_token_for_each_marker(tmp_path: Path) -> None:
    """The chat template's markers are single special tokens, so that an answer's end can be learnt."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.llama(tmp_path / "model"))

    (chat,) = tiny.chats(1)
    text = tokenizer.apply_chat_template(chat["messages"], tokenize=False)

    assert text == "<|im_start|>user\naaa<|im_end|>\n<|im_start|>assistant\nAAA<|im_end|>\n"
    assert tokenizer(text).input_ids.count(tokenizer.eos_token_id) == 2


def test_encoder_folder_loads_as_classifier(tmp_path: Path) -> None:
    """An encoder takes a new classification head and frames a text with [CLS] and [SEP]."""
    folder = tiny.bert(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    batch = tokenizer(["abc Cat", "owl"], padding=True, return_tensors="pt")

    assert tokenizer.convert_ids_to_tokens(batch.input_ids[0]) == ["[CLS]", "a", "##b", "##c", "cat", "[SEP]"]
    assert model(**batch).logits.shape == (2, 3)


def test_same_weights_each_time(tmp_path: Path) -> None:
    """Two builds are equal, another seed is not."""
    first, again, other = (
        AutoModelForCausalLM.from_pretrained(tiny.llama(tmp_path / name, seed)).lm_head.weight
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )

    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_rows_differ_from_each_other() -> None:
    """No row of a set repeats another: held-out rows are really held out."""
    for rows in (tiny.completions(500), tiny.texts(500), tiny.labelled(500)):
        assert len({str(row) for row in rows}) == 500
