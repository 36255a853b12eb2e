"""What is read is put in an order that decisions may rest on."""

import itertools

import pytest

from finetune_operator.observe import in_order
from finetune_operator.observed_state import Pod, Termination

SECOND = "2026-01-01T00:00:07Z"
NEXT = Pod("next", "u0", "train", created_at=SECOND)


def over(name: str, ended: str) -> Pod:
    end = Termination(75, finished_at=f"2026-01-01T00:00:{ended}Z")
    return Pod(name, name, "train", created_at=SECOND, phase="Failed", termination=end)


@pytest.mark.parametrize(
    "last",
    [
        Pod("evicted", "u1", "train", created_at=SECOND, gone_at=SECOND),
        Pod("ended", "u1", "train", created_at=SECOND, phase="Failed"),
        Pod("ends", "u1", "train", created_at=SECOND, phase="Running", is_deleting=True),
        Pod("earlier", "u1", "train", created_at="2026-01-01T00:00:06Z"),
    ],
    ids=lambda pod: pod.name,
)
def test_of_two_pods_of_one_second_the_one_that_ended_was_first(last: Pod) -> None:
    """Creation is told in whole seconds, and an eviction and the next pod may fall into one."""
    for pods in itertools.permutations([last, NEXT]):
        assert in_order(pods) == (last, NEXT)


def test_of_several_that_ended_the_first_to_end_was_first() -> None:
    """The third interruption within one second."""
    pods = (over("first", "07"), over("second", "08"), NEXT)
    for shuffled in itertools.permutations(pods):
        assert in_order(shuffled) == pods
