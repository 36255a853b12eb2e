"""`finetune validate` names file, line and field; tests/contract shows that it agrees with the API server."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finetune_cli.main import app
from finetune_cli.manifest.document import Document, parse
from finetune_cli.manifest.structural_schema import defaulted, go_number
from finetune_cli.manifest.validation import check, describe

JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata:
  name: bot
spec:
  model: {uri: "hf://org/model"}
  dataset:
    train:
    - uri: "pvc://data/a.jsonl"
  output:
    uri: "pvc://models/bot"
"""


def only(text: str) -> Document:
    (document,) = parse(text.encode(), "job.yaml")
    return document


def changed(old: str, new: str) -> Document:
    assert old in JOB
    return only(JOB.replace(old, new))


def validate(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["validate", *arguments], input=stdin)
    return result.exit_code, result.stdout, result.stderr


def test_a_problem_has_path_message_and_line() -> None:
    """The three things that an editor needs to jump there."""
    (problem,) = check(changed('    uri: "pvc://models/bot"', '    uri: "pvc://models/bot"\n    merged: true'))

    assert (problem.path, problem.message, problem.line) == (
        "spec.output.merged",
        'unknown field "spec.output.merged"',
        12,
    )


def test_a_rule_about_the_name_points_at_the_name() -> None:
    """A message about the whole object that begins with a field has that field's line."""
    (problem,) = check(changed("name: bot", "name: Bot"))

    assert problem.line == 4


def test_several_problems_come_in_the_order_of_the_file() -> None:
    """One pass shows all there is to correct, from top to bottom."""
    text = JOB.replace("name: bot", "name: Bot") + "  suspend: 1\n  retry: {limit: 21}\n"
    lines = [problem.line for problem in check(only(text))]

    assert lines == sorted(lines)
    assert {12, 13} <= set(lines)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("v1alpha1", "v1", 'apiVersion: no matches for kind "FineTuneJob" in version "finetune.dev/v1": expected'),
        ("  name: bot", "  {}", "metadata.name: Required value"),
        ("name: bot", "name: 2026", "metadata.name: Invalid value: must be a string: put it in quotes"),
        ("name: bot", "name: bot\n  labels: {v: 1}", "metadata.labels.v: Invalid value: must be a string"),
        (
            "name: bot",
            "name: bot\n  labels: [a]",
            "metadata.labels: Invalid value: must be a map, name: value; it is a list",
        ),
        ("name: bot", "name: bot\n  annotations: a", "metadata.annotations: Invalid value: must be a map"),
        (
            "name: bot",
            "name: bot\n  ownerReferences: {}",
            "metadata.ownerReferences: Invalid value: must be a list of owners",
        ),
        ("name: bot", "name: bot\n  finalizers: [5]", "metadata.finalizers[0]: Invalid value: must be a string"),
        ("name: bot", "name: [bot]", "metadata.name: Invalid value: must be a string"),
    ],
)
def test_what_every_object_needs_is_checked_too(old: str, new: str, message: str) -> None:
    """apiVersion, name and labels are Kubernetes' own rules, and as easy to get wrong."""
    assert any(str(problem).startswith(message) for problem in check(changed(old, new)))


def problems_of_env(name: str) -> list[str]:
    """What is said of a job that sets this variable, after another one."""
    env = f"[{{name: FIRST, value: x}}, {{name: {name}, value: x}}]"
    return [str(problem) for problem in check(only(f"{JOB}  podTemplate: {{env: {env}}}\n"))]


@pytest.mark.parametrize(
    "name",
    [
        *("Https_Proxy", "No_Proxy", "ALL_PROXY", "ftp_proxy", "HUGGINGFACE_CO_STAGING", "HF_ENDPOINT"),
        *("HF_XET_DATA_DEFAULT_CAS_ENDPOINT", "HF_XET_CLIENT_UNIX_SOCKET_PATH"),
        *("OPENSSL_CONF", "OPENSSL_MODULES", "INTEL_LIBITTNOTIFY64", "CUDA_INJECTION64_PATH", "NVTX_INJECTION64_PATH"),
        *("NCCL_NET_PLUGIN", "NCCL_CONF_FILE", "BNB_CUDA_VERSION", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"),
        *("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "CC", "HF_MODULES_CACHE", "NVIDIA_IMEX_CHANNELS", "GLIBC_TUNABLES"),
    ],
)
def test_ways_out_and_code_are_no_variables_of_a_job(name: str) -> None:
    """In whatever case: OpenSSL loads what its file names, and Python reads `No_Proxy` as `no_proxy`."""
    (said,) = problems_of_env(name)
    assert said.startswith("spec.podTemplate.env[1]: Invalid value: variables that choose the way out of the cluster")


@pytest.mark.parametrize(
    "name",
    [
        *("NCCL_DEBUG", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_VISIBLE_DEVICES", "SSL_CERT_FILE", "TORCH_LOGS", "TEAM"),
        *("TOKENIZERS_PARALLELISM", "HF_HUB_DOWNLOAD_TIMEOUT", "HF_XET_HIGH_PERFORMANCE", "PROXY_USER", "ACCOUNT"),
    ],
)
def test_other_variables_are_a_jobs_own(name: str) -> None:
    """Tuning, logs, and what nobody here can foresee."""
    assert problems_of_env(name) == []


def test_a_wrong_label_has_its_own_line() -> None:
    """The API server names the field; the line is that of the entry, or of the owner that lacks something."""
    text = "name: bot\n  labels:\n    a: b\n    c: d e\n  ownerReferences:\n  - {kind: Pod, name: p, uid: u}"
    problems = check(changed("name: bot", text))

    assert [(problem.path, problem.line) for problem in problems] == [
        ("metadata.labels", 7),
        ("metadata.ownerReferences.apiVersion", 9),
    ]


@pytest.mark.parametrize("value", [None, [], "text", 5, {}])
def test_what_is_no_object_is_refused_without_a_crash(value: Any) -> None:
    """Any JSON value gets an answer."""
    assert check(Document(value)) != []


def test_every_part_of_a_job_may_be_of_the_wrong_type() -> None:
    """Whatever stands in place of a field, the answer is a list of problems."""
    for wrong in (None, [], [None], "text", 5, -0.5, True, {}, {"x": None}):
        for line in [line for line in JOB.splitlines() if ": " in line or line.endswith(":")]:
            key = line.split(":")[0].strip("- ")
            value = only(JOB).value
            for holder in (value, value["metadata"], value["spec"], value["spec"]["dataset"], value["spec"]["output"]):
                if key in holder:
                    holder[key] = wrong
                    break
            check(Document(value))


def test_local_runs_may_name_files() -> None:
    """`--local` sees a job as `finetune run` does."""
    local = changed("hf://org/model", "file://models/base")

    assert check(local, cluster=False) == []
    assert "file:// works only" in str(check(local)[0])


def test_status_in_a_file_is_dropped_as_at_creation() -> None:
    """What `kubectl get -o yaml` printed can be checked and applied again."""
    assert check(only(JOB + "status: {phase: 5}\n")) == []


def test_defaults_take_the_place_of_nulls() -> None:
    """A null is an absent field, at every depth."""
    schema = {
        "properties": {
            "a": {"type": "integer", "default": 1},
            "b": {"type": "object", "default": {}, "properties": {"c": {"type": "integer", "default": 2}}},
            "d": {"type": "integer"},
        }
    }

    assert defaulted({"a": None, "d": None, "unknown": 3}, schema) == {"a": 1, "b": {"c": 2}}


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.5, "0.5"), (1e-05, "1e-05"), (0.0001, "0.0001"), (1234567.5, "1.2345675e+06"), (100000.0, "100000"), (7, "7")],
)
def test_numbers_read_as_go_prints_them(number: float, text: str) -> None:
    """Messages carry the value in Go's %v."""
    assert go_number(number) == text


def test_fields_are_explained_from_the_schema() -> None:
    """The sentence under a message is that of `kubectl explain`."""
    assert describe("spec.dataset.train[0].format").startswith("File format")


def test_a_valid_file_is_said_to_be_valid(tmp_path: Path) -> None:
    """Exit code 0 and one line; none with --quiet."""
    file = tmp_path / "job.yaml"
    file.write_text(JOB)

    assert validate(str(file)) == (0, f"✓ {file}: FineTuneJob bot is valid\n", "")
    assert validate("--quiet", str(file)) == (0, "", "")


def test_problems_begin_with_file_and_line(tmp_path: Path) -> None:
    """`file:line: message` on standard error, exit code 1, and the other file is still checked."""
    bad, good = tmp_path / "bad.yaml", tmp_path / "good.yaml"
    bad.write_text(JOB + "  suspend: 1\n")
    good.write_text(JOB)
    code, out, err = validate(str(bad), str(good))

    assert code == 1
    assert err.startswith(f"{bad}:")
    assert f"{bad}:12: spec.suspend: Invalid value" in err
    assert f"✓ {good}" in out


def test_standard_input_is_read() -> None:
    """`-` takes what a pipe brings."""
    code, out, _ = validate("-", stdin=JOB)

    assert (code, "standard input" in out) == (0, True)


def test_other_objects_of_a_file_are_left_alone(tmp_path: Path) -> None:
    """A ConfigMap is none of our business, beside a job or alone; a misspelt kind of ours is an error."""
    both, other = tmp_path / "both.yaml", tmp_path / "other.yaml"
    other.write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n")
    both.write_text(other.read_text() + "---\n" + JOB)

    assert validate(str(both))[0] == 0
    assert validate(str(other)) == (0, "", f"{other}: no FineTuneJob in it, left alone\n")
    other.write_text(JOB.replace("kind: FineTuneJob", "kind: FinetuneJob"))
    assert validate(str(other))[0] == 1
    assert f'{other}:2: kind: no matches for kind "FinetuneJob"' in validate(str(other))[2]


@pytest.mark.parametrize("content", ["", "a: [", "\t"])
def test_no_file_makes_a_traceback(tmp_path: Path, content: str) -> None:
    """Empty and broken files get one line."""
    file = tmp_path / "job.yaml"
    file.write_text(content)
    code, _, err = validate(str(file))

    assert code == 1
    assert err.startswith(str(file))
    assert len(err.splitlines()) == 1


def test_help_loads_nothing_heavy() -> None:
    """`finetune --help` answers at once: no contract, no client, no CEL, no torch."""
    import sys

    heavy = "'pydantic', 'kubernetes', 'celpy', 'torch', 'transformers', 'rich'"
    script = f"import finetune_cli.main, sys; sys.exit(bool({{{heavy}}} & set(sys.modules)))"

    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
