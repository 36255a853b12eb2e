"""The stage `train`: from prepared data to a result folder that publish can take as it is.

It puts together one objective and one method, runs the path that all share, and measures base and tuned model on
held-out data. Whatever was done by an earlier attempt is not done again.
"""

import logging
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from finetune_api.events import StageReport
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.stages import TRAIN
from finetune_api.status import EvaluationResult, Sample
from finetune_trainer.artifacts import result as results
from finetune_trainer.data.prepared import tokenizer_folder
from finetune_trainer.evaluation.held_out import Baseline, HeldOut, answered, measured, measured_base
from finetune_trainer.methods import METHODS
from finetune_trainer.models import device, loading
from finetune_trainer.objectives import OBJECTIVES
from finetune_trainer.pretrained.base_model import check_unchanged
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.stop import StopRequest
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.training import checkpoints
from finetune_trainer.training.arguments import training_arguments
from finetune_trainer.training.callback import RunCallback
from finetune_trainer.training.checkpoints import Store
from finetune_trainer.training.context import Stage, stage_of
from finetune_trainer.training.intervals import intervals_of
from finetune_trainer.training.trainer import FineTuneTrainer

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers", "numpy")
"""Those whose versions can change a result."""


def train(run: Run, workspace: Workspace, progress: Progress, stop: StopRequest | None = None) -> StageReport:
    """Run the stage; raises Failure, with reason Preempted after a stop that can be resumed."""
    stop = stop or StopRequest()
    stop.install()
    stage = stage_of(run, workspace, progress, stop)
    finished = results.read_own(workspace.result, stage.identity)
    if finished is not None:
        log.info("training is done already: nothing to do")
        return StageReport(stage=TRAIN, evaluation=finished.evaluation)
    check_unchanged(run, Path(stage.page.model_path), stage.page.model_stamp, stage.page.model_revision)
    _begin(stage)
    trainer = assemble(stage)
    baseline = measured_base(stage, trainer)
    callback = follow(stage, trainer)
    evaluation = _finish(stage, trainer, callback, baseline)
    return StageReport(stage=TRAIN, evaluation=evaluation)


def _begin(stage: Stage) -> None:
    stage.progress.update(activity="loading", total_steps=stage.page.plan.total_steps or 0)
    loading.quiet()
    if device.device().type == "cpu":
        _without_gpu(stage.run)
    log.info("%d threads", device.use_cores())
    transformers.set_seed(stage.spec.training.seed)


def _without_gpu(run: Run) -> None:
    """A pod that was given a GPU must see it, or it would hold it idle for days; a machine of one's own need not."""
    if run.spec.resources.gpus and run.trainer_image:
        raise Failure(Reason.GPU_UNAVAILABLE, "spec.resources.gpus is 1, and torch sees no GPU in this container")
    if run.spec.training.optimizer == "pagedAdamw8bit":
        raise Failure(
            Reason.UNSUPPORTED,
            "spec.training.optimizer: pagedAdamw8bit moves its state between a GPU and the host, and torch sees no GPU "
            "here; choose adamw8bit",
        )
    if run.spec.resources.gpus:
        log.warning("spec.resources.gpus is 1, and torch sees no GPU on this machine: training on the CPU")


def assemble(stage: Stage) -> FineTuneTrainer:
    """The model with its method applied, in the trainer, with its objective."""
    config = loading.config_of(Path(stage.page.model_path))
    kind, method = OBJECTIVES[stage.spec.objective.kind].suited(config), METHODS[stage.spec.method.kind]
    head = kind.head(tuple(stage.page.labels))
    options = stage.spec.method.options
    on = device.device()
    dtype, basis = device.arithmetic(stage.page.plan.precision or stage.spec.training.precision, on)
    base = method.load(Path(stage.page.model_path), head, stage.page.pad_token_id, options, dtype)
    steps = stage.page.plan.total_steps
    assert steps is not None
    model = method.apply(base, options, head, steps, tokenizer_folder(stage.workspace))
    if dtype is not torch.float32:
        loading.narrow_frozen(model, dtype)
    device.give_back_freed()
    rows = stage.rows("train")
    if rows is None:
        raise Failure(Reason.DATASET_INVALID, "spec.dataset.train: no record is left to learn from")
    why = f" ({basis})" if basis else ""
    log.info("%s on %s, %s%s", type(base.model).__name__, on.type, str(dtype).removeprefix("torch."), why)
    arguments = training_arguments(stage, on)
    rates = method.parameter_rates(model, options, arguments.learning_rate)
    objective = kind(model, stage.page.pad_token_id, dtype)
    trainer = FineTuneTrainer(model, arguments, rows, objective, method, rates)
    stage.stop.check()
    return trainer


def follow(stage: Stage, trainer: FineTuneTrainer) -> RunCallback:
    """Train from the latest checkpoint to the end, or to a stop."""
    assert stage.page.plan.total_steps is not None
    store = Store(stage.workspace.checkpoints, stage.identity, stage.spec.checkpoint.keep)
    trainer.resumed_from = store.latest()
    table = intervals_of(stage.spec, stage.page.plan.total_steps)
    callback = RunCallback(trainer, table, store, stage.rows("validation"), stage.progress, stage.stop)
    trainer.add_callback(callback)
    stage.progress.update(
        activity="training",
        step=callback.state.step,
        resumed_from_step=callback.state.step,
        checkpoint_step=callback.state.step,
    )
    if trainer.resumed_from is not None:
        log.info("resuming from step %d", callback.state.step)
        checkpoints.restore_weights(trainer.resumed_from, trainer)
    callback.catch_up()
    if not callback.state.finished:
        trainer.train(resume_from_checkpoint=str(trainer.resumed_from.folder) if trainer.resumed_from else None)
    if not callback.state.finished:
        raise Failure(Reason.PREEMPTED, f"stopped; the checkpoint of step {callback.state.step} is saved")
    if callback.state.best_step is not None:
        store.load_best(trainer.model, callback.state.best_step)
    return callback


def _finish(stage: Stage, trainer: FineTuneTrainer, callback: RunCallback, baseline: Baseline) -> EvaluationResult:
    """Measure the tuned model and leave the result."""
    held_out, after = measured(stage, trainer), answered(stage, trainer)
    prompts = stage.spec.evaluation.prompts if after else []
    evaluation = EvaluationResult(
        split=held_out.split if held_out else None,
        base=baseline.held_out.metrics if baseline.held_out else None,
        tuned=held_out.metrics if held_out else None,
        best_step=callback.state.best_step,
        samples=[
            Sample(prompt=prompt, before=old, after=new)
            for prompt, old, new in zip(prompts, baseline.answers, after, strict=True)
        ],
    )
    stage.progress.update(activity="writing")
    trainer.model.config.use_cache = trainer.use_cache  # transformers.Trainer turned it off for the training
    with results.draft(stage.workspace.result, _result(stage, callback, evaluation, baseline, held_out)) as artifact:
        name = results.base_name(stage.spec.model.uri)
        METHODS[stage.spec.method.kind].save(trainer.model, artifact, name, stage.page.model_revision)
    return evaluation


def _result(
    stage: Stage, callback: RunCallback, evaluation: EvaluationResult, base: Baseline, tuned: HeldOut | None
) -> results.Result:
    quantized = getattr(callback.trainer.model.config, "quantization_config", None)
    return results.Result(
        identity=stage.identity,
        evaluation=evaluation,
        state=callback.state,
        details={"base": base.held_out.details if base.held_out else {}, "tuned": tuned.details if tuned else {}},
        kind=METHODS[stage.spec.method.kind].artifact,
        loader=METHODS[stage.spec.method.kind].loader,
        auto_class=callback.trainer.objective.head(()).auto_class,
        quantization={k: v for k, v in quantized.to_diff_dict().items() if k[0] != "_"} if quantized else None,
        versions={name: version(name) for name in LIBRARIES},
    )
