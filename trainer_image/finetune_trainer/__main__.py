"""`python -m finetune_trainer prepare|train|publish --run FILE`: one stage of a run.

It decides nothing but what is imported: each stage, and each run, pays only for what it uses.
"""

import os
import signal

if os.getpid() == 1:
    # Process 1 of a container has no default action: a pod that is evicted while its trainer is still being imported
    # would run on until it is killed. The stage's own handler takes over from this one.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))

import argparse
import sys
from pathlib import Path

from finetune_api import labels
from finetune_api.run import Run
from finetune_api.stages import PREPARE, PUBLISH, TRAIN
from finetune_trainer.runtime import optional_imports
from finetune_trainer.runtime.process import StageFunction, run_stage
from finetune_trainer.runtime.progress import ALL_INTERFACES

OFFLINE_STAGES = (TRAIN, PUBLISH)
"""Stages that need no model hub: prepare has fetched what has to be fetched."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    # Threads that wait sleep: spinning, they starve each other as soon as anything else wants a core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if options.stage in OFFLINE_STAGES:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return run_stage(
        options.stage, STAGES[options.stage], options.run, options.port, options.termination_log, options.host
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="finetune_trainer", description="Run one stage of a fine-tuning run.")
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument(
        "--run",
        type=Path,
        default=Path(labels.RUN_DIRECTORY) / labels.RUN_FILE,
        help="the run file (default: %(default)s)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=labels.PROGRESS_PORT,
        help="of /progress and /metrics; 0: none (default: %(default)s)",
    )
    parser.add_argument("--host", default=ALL_INTERFACES, help="the same's address (default: every one of the pod's)")
    kubelet = Path(labels.TERMINATION_LOG)
    parser.add_argument(
        "--termination-log", type=Path, default=kubelet if kubelet.exists() else None, help="file for the last report"
    )
    return parser


def _prepare(run: Run) -> StageFunction:
    from finetune_trainer.stages.prepare import prepare

    return prepare


def _train(run: Run) -> StageFunction:
    optional_imports.leave_out_unused(run.spec)
    from finetune_trainer.stages.train import train

    return train


def _publish(run: Run) -> StageFunction:
    optional_imports.leave_out_unused(run.spec)
    from finetune_trainer.stages.publish import publish

    return publish


STAGES = {PREPARE: _prepare, TRAIN: _train, PUBLISH: _publish}

if __name__ == "__main__":
    sys.exit(main())
