"""A conversation is rendered as transformers renders it, and the assistant's characters are found exactly."""

from pathlib import Path
from typing import Any

import pytest

import preparing
from finetune_api.reasons import Reason
from finetune_trainer.pretrained.chat_template import ChatTemplate
from finetune_trainer.runtime.failures import BadRecordError, Failure

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello  "},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "So long"},
]
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = none %}{% endif %}{{ bos_token }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "[INST] {{ ('<<SYS>>' + system + '<</SYS>> ' if loop.first and system else '') }}"
    "{{ message['content'].strip() }} [/INST]"
    "{% else %} {{ message['content'].strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
MARKED = (
    "{%- for message in messages -%}\n  {%- if message.role == 'assistant' -%}\n"
    "    {{ 'A:' }}{% generation %}{{ message.content }}{{ eos_token }}{% endgeneration %}\n"
    "  {%- else -%}\n    {{ message.role[0] | upper }}: {{ message.content | tojson }}\n  {%- endif -%}\n"
    "  {%- if loop.index > 50 %}{% break %}{% endif %}{%- endfor -%}{% if add_generation_prompt %}A:{% endif %}"
)
REWRITING = (  # earlier answers lose their thoughts, as in some reasoning models
    "{% for message in messages %}{% if message.role == 'assistant' and not loop.last %}"
    "<a>{{ message.content.split('|')[-1] }}</a>{% else %}"
    "<{{ message.role[0] }}>{{ message.content }}</{{ message.role[0] }}>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, "spec.dataset.template", Reason.BAD_SPEC, TOKENS)


def answers(source: str, messages: list[dict[str, Any]]) -> list[str]:
    text, spans = template(source).answers(messages)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("source", [preparing.CHATML, LLAMA2, MARKED, REWRITING])
@pytest.mark.parametrize("ask", [False, True])
def test_the_text_is_that_of_transformers(source: str, ask: bool, tmp_path: Path) -> None:
    """The one oracle that counts: what inference code will render."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=preparing.byte_tokenizer(), chat_template=source, **TOKENS)
    messages = CHAT[:-1] if ask else CHAT
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    assert template(source).text(messages, ask) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (preparing.CHATML, ["Hello  <|end|>", "So long<|end|>"]),
        (LLAMA2, [" Hello </s>", " So long </s>"]),
        (MARKED, ["Hello  </s>", "So long</s>"]),
    ],
)
def test_answers_are_found_with_their_ends(source: str, expected: list[str]) -> None:
    """What the model has to write at inference: the answer and the token that ends it, no white space after that."""
    assert answers(source, CHAT) == expected


def test_a_template_that_rewrites_earlier_turns_teaches_the_last_one() -> None:
    """The earlier answer stands in the text as the model will see it, and is not learnt."""
    messages = [*CHAT[:2], {"role": "assistant", "content": "think|Hello"}, *CHAT[3:]]
    text, spans = template(REWRITING).answers(messages)
    assert "think" not in text
    assert [text[start:end] for start, end in spans] == ["So long</a>"]


def test_a_template_whose_answers_cannot_be_told_apart_is_refused() -> None:
    with pytest.raises(BadRecordError, match=r"mark answers with \{% generation %\} in spec.dataset.template"):
        answers("{{ messages | length }}{% for message in messages %}{{ message.content }}{% endfor %}", CHAT)


def test_a_chat_without_answers_has_none() -> None:
    assert answers(preparing.CHATML, CHAT[:2]) == []


def test_what_a_template_refuses_is_told() -> None:
    """`raise_exception` is how templates speak to their users."""
    with pytest.raises(BadRecordError, match=r"^chat template: roles must alternate$"):
        answers("{{ raise_exception('roles must alternate') }}", CHAT)
    with pytest.raises(BadRecordError, match=r"^chat template: 'dict object' has no attribute 'mood'$"):
        answers("{{ messages[0].mood.colour }}", CHAT)
    with pytest.raises(BadRecordError, match=r"^chat template: division by zero$"):
        answers("{{ 1 / 0 }}", CHAT)


def test_a_template_that_is_no_template_is_told() -> None:
    with pytest.raises(Failure) as caught:
        template("{% for message in messages %}\n{{ message.content }")
    assert caught.value.message == "spec.dataset.template: line 2: unexpected '}'"


def test_a_template_has_no_way_out() -> None:
    """It is a model's or a user's code: it runs in a sandbox and cannot change what it is given."""
    with pytest.raises(BadRecordError, match="unsafe"):
        answers("{{ messages.__class__.__mro__ }}", CHAT)
    with pytest.raises(BadRecordError, match=r"chat template: "):
        answers("{{ messages.append(1) }}", CHAT)
