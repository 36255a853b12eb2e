"""Lines of the operator's deciding modules, now and before it replaced Jobs, counted tries and took pod templates.

    .venv/bin/python benchmarks/operator_lines.py

`manifests` was called `objects` then, and `pods` and `templates` were part of it; `attempts`, `situation` and
`assessment` of `plan`. The sum over all says what really came.
"""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "operator" / "finetune_operator"
BEFORE = {"plan": 398, "status": 333, "manifests": 309, "diagnosis": 185} | dict.fromkeys(
    ("situation", "assessment", "attempts", "pods", "templates"), 0
)
COUNTED = ("plan", "status", "manifests")


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
