"""A pytest plugin: which methods passed all their tests, with which objective, on which family of models.

    pytest -p support tests/smoke/test_train_pairs.py

updates docs/support.json with the pairs that ran; `make generate` makes the README's table from it. It only listens:
what passes is decided by the tests.
"""

import json
import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs/support.json"
PAIR = re.compile(r"test_train_pairs\.py::\w+\[(?P<family>[^-\]]+)-(?P<objective>[^-\]]+)-(?P<method>[^-\]]+)\]")

Outcomes = dict[str, dict[str, bool]]
"""Method -> "family objective" -> whether all passed."""


class Listener:
    def __init__(self) -> None:
        self.outcomes: Outcomes = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        found = PAIR.search(report.nodeid)
        if found and (report.when == "call" or report.failed):
            pairs = self.outcomes.setdefault(found["method"], {})
            key = f"{found['family']} {found['objective']}"
            pairs[key] = pairs.get(key, True) and report.passed

    def pytest_sessionfinish(self) -> None:
        if not self.outcomes:
            return
        known: Outcomes = json.loads(PAGE.read_bytes()) if PAGE.exists() else {}
        for method, pairs in self.outcomes.items():
            known.setdefault(method, {}).update(pairs)
        PAGE.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # the process that hears of all tests
        config.pluginmanager.register(Listener())
