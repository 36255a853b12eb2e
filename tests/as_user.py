"""`prepare` as a user who may not read everything: `python tests/as_user.py FOLDER…`, each with a run.json.

Root reads every file, so a process of root becomes USER first. It prepares the first folder before that: the
interpreter itself may lie where that user cannot go, and nothing is to be imported any more. Each folder gets the
stage's report as `ended`; the user's exit codes are printed.
"""

import os
import sys
from functools import partial
from pathlib import Path

from finetune_trainer.runtime.process import run_stage
from finetune_trainer.stages.prepare import prepare
from preparing import Count

USER = 10001


def code(folder: Path) -> int:
    stage = partial(prepare, counting=Count)
    return run_stage("prepare", lambda run: stage, folder / "run.json", 0, folder / "ended")


if __name__ == "__main__":
    warmed, *folders = map(Path, sys.argv[1:])
    assert code(warmed) == 0
    if os.geteuid() == 0:
        os.setgroups([USER])
        os.setgid(USER)
        os.setuid(USER)
    print(*map(code, [warmed, *folders]))
