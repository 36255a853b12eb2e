"""Lines of the operator's deciding modules, now and before it replaced Jobs, counted tries and took pod templates.

    .venv/bin/python benchmarks/operator_lines.py

`pods` and `templates` were part of `objects` then; `attempts`, `situation` and `verdicts` of `plan`. The sum over all
says what really came.
"""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "operator" / "finetune_operator"
BEFORE = {"plan": 398, "status": 333, "objects": 309, "diagnosis": 185} | dict.fromkeys(
    ("situation", "verdicts", "attempts", "pods", "templates"), 0
)
COUNTED = ("plan", "status", "objects")


def main() -> None:
    now = {name: len((FOLDER / f"{name}.py").read_text().splitlines()) for name in BEFORE}
    print("| module | before | now | now ÷ before |\n|---|---|---|---|")
    for name, lines in now.items():
        print(f"| {name} | {BEFORE[name]:,} | {lines:,} | |")
    for title, names in ((", ".join(COUNTED), COUNTED), ("all", tuple(BEFORE))):
        before, after = (sum(lines[name] for name in names) for lines in (BEFORE, now))
        print(f"| **{title}** | **{before:,}** | **{after:,}** | **{after / before:.2f}** |")


if __name__ == "__main__":
    main()
