"""Theory: what others wrote can be read on a terminal and in a log, and cannot act there."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.text import LETTERS, printable, printable_lines


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("\x7f\x00", r"\x7f\x00"),
        ("abc\u202egnp", r"abc\u202egnp"),
        ("\u2028\u200b\ufeff", r"\u2028\u200b\ufeff"),
        ("\U000e0041", r"\U000e0041"),
        ("\udc9b", r"\udc9b"),
        ("one\r\ntwo\nthree\rfour\tfive", "one two three four five"),
        ("Grüße, 世界 🙂\u00a0!", "Grüße, 世界 🙂\u00a0!"),
        ("می\u200cخواهم", "می\u200cخواهم"),
    ],
)
def test_what_acts_on_a_terminal_is_shown_as_an_escape(raw: str, shown: str) -> None:
    assert printable(raw) == shown


def test_lines_and_tabs_are_kept_where_a_text_has_lines() -> None:
    assert printable_lines("a\tb\r\n10 %\r20 %\n\x1b[31mc") == "a\tb\n10 %\n20 %\n\\x1b[31mc"


@given(st.text(st.characters()))
def test_no_hidden_character_is_left_in_any_text(text: str) -> None:
    shown = printable(text)
    left = {unicodedata.category(char) for char in shown if char not in LETTERS}
    assert not left & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert printable(shown) == shown
    shown.encode()
