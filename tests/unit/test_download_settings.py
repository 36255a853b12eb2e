"""What a person may say about downloads is checked when it is said: a limit that means nothing must not be found out by
a job that was let through, or by one that was not."""

import pytest

from finetune_api.run import Downloads
from finetune_cli.commands.run import downloads
from finetune_operator.settings import parse

IMAGE = ["--trainer-image=trainer"]


def test_the_flags_become_what_a_run_is_frozen_with() -> None:
    flags = ["--download-allow=*.example.com, 10.0.0.0/8", "--download-max-bytes=5", "--download-timeout=6"]
    expected = Downloads(allow=["*.example.com", "10.0.0.0/8"], max_bytes=5, timeout_seconds=6)
    assert parse([*IMAGE, *flags], {}).downloads == expected
    assert parse(IMAGE, {"FINETUNE_DOWNLOAD_ALLOW": "host"}).downloads.allow == ["host"]
    assert parse(IMAGE, {}).downloads == Downloads()


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--download-allow=10.0.0.0/40", "10.0.0.0/40: neither a host, *.domain, an address nor a network"),
        ("--download-max-bytes=0", "greater than or equal to 1"),
        ("--download-timeout=soon", "invalid int value"),
    ],
)
def test_a_wrong_flag_stops_the_operator_with_its_name(
    capsys: pytest.CaptureFixture[str], flag: str, message: str
) -> None:
    with pytest.raises(SystemExit):
        parse([*IMAGE, flag], {})
    told = capsys.readouterr().err
    assert message in told
    assert flag.partition("=")[0] in told


def test_a_local_run_opens_what_its_person_names_and_bounds_nothing() -> None:
    assert downloads(["localhost"]).allow == ["localhost"]
    assert downloads([]).max_bytes > 1 << 50
    with pytest.raises(ValueError, match="--download-allow http://x: neither a host"):
        downloads(["http://x"])
