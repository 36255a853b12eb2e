"""The README's table of methods: what the schema says, what the tests found and what the benchmark measured.

    .venv/bin/python benchmarks/methods_table.py            # write it
    .venv/bin/python benchmarks/methods_table.py --check    # fail if it is not what would be written

It takes docs/support.json (`make support`) and docs/methods.json (`make bench-methods`), and decides nothing itself.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

from finetune_api.crd import field_docstrings
from finetune_api.spec.methods import Method, MethodOptions

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BEGIN, END = "<!-- benchmarks/methods_table.py writes from here -->", "<!-- to here -->"
FAMILIES = {"llama": "Llama-style", "gpt2": "GPT-2-style", "bert": "BERT-style", "t5": "T5-style"}
LIBRARIES = {"peft": "peft", "transformers": "transformers", "finetune_trainer": "this package"}


def main() -> int:
    text = README.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    written = f"{before}{BEGIN}\n\n{table()}\n{END}{rest.partition(END)[2]}"
    if "--check" in sys.argv:
        if written != text:
            print("README.md: its table of methods is out of date: make generate", file=sys.stderr)
        return int(written != text)
    README.write_text(written, encoding="utf-8")
    return 0


def table() -> str:
    support, measured = (json.loads((ROOT / f"docs/{name}.json").read_bytes()) for name in ("support", "methods"))
    families = {
        key: name for key, name in FAMILIES.items() if any(key in pairs for pairs in map(_families, support.values()))
    }
    known = ["method", "what moves", "parameters", "memory, MB", "merges", "served as it is", "opens with"]
    head = [*known, *families.values(), "paper"]
    rows = [
        _row(name, options, measured.get(name), support.get(name, {}), list(families)) for name, options in members()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)) + "\n"


def members() -> list[tuple[str, type[MethodOptions]]]:
    """Wire name and options of every method."""
    fields = Method.model_fields.values()
    return [
        (str(field.alias), next(kind for kind in get_args(field.annotation) if kind is not type(None)))
        for field in fields
    ]


def _row(
    name: str, options: type[MethodOptions], measured: Any, support: dict[str, bool], families: list[str]
) -> list[str]:
    figures = [f"{measured['trainable']:,}", f"{measured['peak_mb']:,.0f}"] if measured else ["", ""]
    opens = LIBRARIES[measured["loader"]] if measured else ""
    return [
        f"`{name}`",
        _said(options),
        *figures,
        "yes" if options.is_mergeable else "no",
        _served(options, opens == "transformers"),
        opens,
        *(_cell(support, family) for family in families),
        _paper(options),
    ]


def _served(options: type[MethodOptions], is_model: bool) -> str:
    if is_model or options.is_plain_lora:
        return "yes"
    return "merged" if options.is_mergeable else "no"


def _said(options: type[MethodOptions]) -> str:
    """The first sentence of its description, without citations."""
    words = " ".join((options.__doc__ or "").split())
    return re.sub(r"\s*\([^)]*arXiv[^)]*\)", "", words).split(". ")[0].rstrip(".")


def _paper(options: type[MethodOptions]) -> str:
    found = re.search(r"arXiv:(\d+\.\d+)", " ".join([options.__doc__ or "", *field_docstrings(options).values()]))
    return f"[{found[1]}](https://arxiv.org/abs/{found[1]})" if found else ""


def _families(pairs: dict[str, bool]) -> set[str]:
    return {pair.split()[0] for pair in pairs}


def _cell(support: dict[str, bool], family: str) -> str:
    passed = [pair.split()[1] for pair, ok in support.items() if ok and pair.split()[0] == family]
    return ", ".join(sorted(passed, reverse=True)) or "–"


if __name__ == "__main__":
    sys.exit(main())
