"""The docs say what the code says: every reason is explained, every link leads somewhere, every manifest is valid."""

import re
from pathlib import Path

import pytest
import yaml

from finetune_api.crd import definition
from finetune_api.job import FineTuneJob
from finetune_api.reasons import NEXT_STEP, Reason
from finetune_api.reference import reference

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("charts/**/*.md")])


@pytest.mark.parametrize("reason", list(Reason))
def test_troubleshooting_explains_the_reason(reason: Reason) -> None:
    """Each reason has a row of its own in docs/troubleshooting.md."""
    assert f"| `{reason}` |" in (ROOT / "docs/troubleshooting.md").read_text()


def test_troubleshooting_explains_no_reason_that_is_gone() -> None:
    """A row whose reason no longer exists is a defect."""
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)

    assert set(rows) <= {str(reason) for reason in Reason}


def test_every_failure_has_a_next_step() -> None:
    """From the first waiting reason on, each reason tells what to do."""
    reasons = list(Reason)
    troubled = reasons[reasons.index(Reason.PREEMPTED) :]

    assert set(troubled) == set(NEXT_STEP)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(page: Path) -> None:
    """A relative link names a file or folder that exists."""
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text())

    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_jobs_shown_in_the_docs_are_valid(page: Path) -> None:
    """A FineTuneJob in a YAML block parses with the contract."""
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL):
        for document in yaml.safe_load_all(block):
            if isinstance(document, dict) and document.get("kind") == "FineTuneJob":
                FineTuneJob.model_validate(document)


def test_generated_files_are_up_to_date() -> None:
    """`make generate` would change nothing."""
    crd = yaml.safe_load((ROOT / "crds/finetunejobs.yaml").read_text())

    assert crd == definition()
    assert (ROOT / "docs/api.md").read_text() == reference()


def test_operations_names_every_metric() -> None:
    """The table of docs/operations.md and the operator's registry hold the same names."""
    page = (ROOT / "docs/operations.md").read_text()
    listed = set(re.findall(r"^\| `(finetune_\w+)` \| (?:gauge|counter|histogram)", page, re.MULTILINE))
    source = (ROOT / "operator/finetune_operator/metrics.py").read_text()
    registered = {
        name + ("_total" if kind == "Counter" else "")
        for kind, name in re.findall(r'(Gauge|Counter|Histogram)\(\s*"(finetune_\w+)"', source)
    }

    assert listed == registered
