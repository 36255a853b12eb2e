"""Text of others (a pod, a hub, a dataset, a user) made fit for a terminal, an Event or a line of a log.

It decides which characters are shown as they are. It knows no terminal and no markup.
"""

import re
import unicodedata

LINE_BREAK = re.compile(r"\r\n|\n|\r")
HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories that act on what shows them, or show nothing: controls (C0, DEL, C1), format characters (bidi
overrides, zero widths, tags), lone surrogates (no stream can encode them), line and paragraph separators."""
LETTERS = "\u200c\u200d"
"""The two format characters that words of living languages (Persian, Hindi) and emoji are written with."""


def printable(text: str) -> str:
    r"""`text` on one line: a line break or a tab is a space, any other hidden character its escape (`\x1b`)."""
    return _visible(LINE_BREAK.sub(" ", text).replace("\t", " "))


def printable_lines(text: str) -> str:
    r"""`text` with its lines and tabs, and any other hidden character as its escape (`\x1b`); "\r" ends a line too,
    so that a progress bar's line cannot write over the one before."""
    return "\n".join("\t".join(map(_visible, line.split("\t"))) for line in LINE_BREAK.split(text))


def _visible(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(_escape(char) if _is_hidden(char) else char for char in text)


def _is_hidden(char: str) -> bool:
    return unicodedata.category(char) in HIDDEN and char not in LETTERS


def _escape(char: str) -> str:
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
