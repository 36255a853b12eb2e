"""Chat templates: a conversation becomes one text, and the places in it that the assistant wrote.

It decides which characters are the assistant's. It knows no token. It renders as transformers' `apply_chat_template`
does (a test compares them), without importing transformers, which takes seconds.

Where the template marks answers with `{% generation %}`, the marks decide. Elsewhere an answer is what the text gains
between rendering the conversation up to it, with the generation prompt, and rendering it up to and with it; both must
be beginnings of the whole text, or the record is refused. A template that rewrites earlier turns (some drop earlier
reasoning) fails that for all turns but the last: then only the last answer is the assistant's.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from finetune_api.reasons import Reason
from finetune_trainer.runtime.failures import BadRecordError, Failure

Span = tuple[int, int]
"""First character, and the one after the last."""
Message = dict[str, Any]

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Unicode noncharacters that stand around an answer while the text is rendered; text cannot contain them lawfully."""


class ChatTemplate:
    """A compiled template. `place` is where it comes from, for messages; `tokens` are bos_token and so on."""

    def __init__(self, source: str, place: str, reason: Reason, tokens: Mapping[str, str]) -> None:
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise Failure(reason, f"{place}: line {error.lineno}: {error.message}") from None
        self._tokens = dict(tokens)
        self._marks = "generation" in source and "endgeneration" in source

    def text(self, messages: list[Message], ask: bool = False) -> str:
        """The conversation as text; with the beginning of an answer if `ask`. Raises BadRecordError."""
        marked = self._render(messages, ask)
        return marked.replace(OPEN, "").replace(CLOSE, "") if self._marks else marked

    def answers(self, messages: list[Message]) -> tuple[str, list[Span]]:
        """The conversation as text, and the characters that the assistant wrote, white space after a turn excluded."""
        marked = self._render(messages, ask=False)
        text, spans = _unmarked(marked) if self._marks else (marked, self._spans(messages, marked))
        return text, [span for span in (_trimmed(text, span) for span in spans) if span[0] < span[1]]

    def _spans(self, messages: list[Message], whole: str) -> list[Span]:
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        found = [self._span(messages, turn, whole) for turn in turns]
        spans = [span for span in found if span is not None]
        if turns and (not found or found[-1] is None):
            raise BadRecordError(
                "the chat template does not render the answer as a continuation of its prompt: "
                "mark answers with {% generation %} in spec.dataset.template"
            )
        return spans

    def _span(self, messages: list[Message], turn: int, whole: str) -> Span | None:
        before = self.text(messages[:turn], ask=True)
        upto = whole if turn == len(messages) - 1 else self.text(messages[: turn + 1])
        if not whole.startswith(before) or not whole.startswith(upto) or len(upto) < len(before):
            return None
        return len(before), len(upto)

    def _render(self, messages: list[Message], ask: bool) -> str:
        context = self._tokens | {"messages": messages, "add_generation_prompt": ask, "tools": None, "documents": None}
        try:
            return self._template.render(context)
        except jinja2.TemplateError as error:
            raise BadRecordError(f"chat template: {error.message or type(error).__name__}") from None
        except (
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            ArithmeticError,
        ) as error:  # its own code
            raise BadRecordError(f"chat template: {error}") from None


class Generation(jinja2.ext.Extension):
    """`{% generation %}…{% endgeneration %}` around what the assistant wrote."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{OPEN}{caller()}{CLOSE}"


def _environment() -> jinja2.Environment:
    extensions = [Generation, "jinja2.ext.loopcontrols"]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=extensions
    )
    environment.filters["tojson"] = _json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda style: datetime.now(UTC).astimezone().strftime(style)
    return environment


def _json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _unmarked(marked: str) -> tuple[str, list[Span]]:
    """Remove the marks; returns the text and the spans that they enclosed."""
    text, spans = "", []
    for part in marked.split(OPEN):
        inside, closed, after = part.partition(CLOSE)
        if closed:
            spans.append((len(text), len(text) + len(inside)))
        text += inside + after
    return text, spans


def _trimmed(text: str, span: Span) -> Span:
    return span[0], span[0] + len(text[span[0] : span[1]].rstrip())
