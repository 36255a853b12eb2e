"""Settings come from flags, else from the environment, else from one place of defaults."""

from __future__ import annotations

import pytest

from finetune_operator.settings import parse


def test_a_flag_outweighs_the_environment_and_that_the_default() -> None:
    """As the help says."""
    environment = {"FINETUNE_TRAINER_IMAGE": "a:1", "FINETUNE_WORKERS": "7", "FINETUNE_PORT": "9000"}
    settings = parse(["--workers", "9"], environment)
    assert (settings.trainer_image, settings.workers, settings.port) == ("a:1", 9, 9000)
    assert settings.trainer_port == 8080


def test_lists_are_separated_by_commas() -> None:
    """Spaces and empty words do not count."""
    settings = parse(["--trainer-image", "a:1", "--namespaces", "a, b,"], {})
    assert settings.namespaces == ("a", "b")


@pytest.mark.parametrize(("word", "elects"), [("true", True), ("0", False), ("", False)])
def test_leader_election_by_environment(word: str, elects: bool) -> None:
    """Off outside a cluster unless it is asked for."""
    assert parse(["--trainer-image", "a:1"], {"FINETUNE_LEADER_ELECT": word}).leader_elect is elects


def test_without_a_trainer_image_it_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    """A usage message, no traceback."""
    with pytest.raises(SystemExit):
        parse([], {})
    assert "--trainer-image" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--workers", "many"], ["--image-pull-policy", "Sometimes"], ["--log-level", "loud"]]
)
def test_a_bad_value_is_a_usage_error(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Each names the flag."""
    with pytest.raises(SystemExit):
        parse(["--trainer-image", "a:1", *arguments], {})
    assert arguments[0] in capsys.readouterr().err


def test_the_pod_template_is_read_whole() -> None:
    """The same fields as a job's, null ids included."""
    text = '{"securityContext": {"runAsUser": null}, "stages": {"train": {"nodeSelector": {"pool": "gpu"}}}}'
    template = parse(["--trainer-image", "a:1", "--pod-template", text], {}).pod_template
    assert template is not None
    assert template.security_context is not None
    assert template.security_context.left_out == ["runAsUser"]
    assert template.stages is not None
    assert template.stages.train is not None
    assert template.stages.train.node_selector == {"pool": "gpu"}


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{", "the JSON: Invalid JSON"),
        ('{"nodeSelektor": {}}', "nodeSelektor: Extra inputs are not permitted"),
        ('{"env": [{"name": "HOME", "value": "/"}]}', "env[0]: HOME"),
        ('{"env": [{"name": "LD_PRELOAD", "value": "/mnt/a.so"}]}', "env[0]: HOME"),
        ('{"env": [{"name": "A"}]}', "env[0]: set exactly one of: value, valueFrom"),
        ('{"metadata": {"labels": {"finetune.dev/job": "a"}}}', "metadata: labels"),
        ('{"metadata": {"annotations": {"finetune.dev/a": "a"}}}', "metadata: annotations"),
        ('{"volumes": [{"name": "a"}]}', "volumes[0]: set exactly one of: configMap"),
        ('{"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}', "volumes[0].hostPath: Extra inputs"),
        ('{"volumes": [{"name": "workspace", "emptyDir": {}}]}', "volumes[0]: run, workspace"),
        ('{"volumeMounts": [{"name": "a", "mountPath": "/workspace"}]}', "volumeMounts[0].mountPath"),
        ('{"volumeMounts": [{"name": "a", "mountPath": "/mnt/../etc"}]}', "volumeMounts[0].mountPath"),
        ('{"securityContext": {"runAsUser": 0}}', "securityContext.runAsUser"),
        ('{"volumeMounts": [{"name": "a", "mountPath": "/mnt/a"}]}', "PodTemplate: volumeMounts: each names one"),
        ('{"env": [{"name": "A", "value": "a"}, {"name": "A", "value": "b"}]}', "PodTemplate: env: two items"),
        ('{"stages": {"train": {"image": "mine"}}}', "stages.train.image: Extra inputs are not permitted"),
    ],
)
def test_what_a_template_may_not_say_is_told_at_the_start(
    template: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Field by field: misspelt ones, and what the operator decides."""
    with pytest.raises(SystemExit):
        parse(["--trainer-image", "a:1", "--pod-template", template], {})
    assert f"--pod-template: {told}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["finetune.dev/*", "kueue.x-k8s.io/queue-name", "job-name", "a b", "*", "a/b/c", "/a"])
def test_labels_that_cannot_be_copied_are_told_at_the_start(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that the operator goes by, and what is no name."""
    with pytest.raises(SystemExit):
        parse(["--trainer-image", "a:1", "--copy-labels", name], {})
    assert name in capsys.readouterr().err
