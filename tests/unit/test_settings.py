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
