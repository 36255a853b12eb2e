"""The stage `train`: from prepared data to a result folder that publish can take as it is.

It puts together one objective and one method, runs the path that all share, and measures base and tuned model on
held-out data. Whatever was done by an earlier attempt is not done again.
"""

import hashlib
import json
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import transformers

from finetune_api.events import StageReport
from finetune_api.reasons import Reason
from finetune_api.run import Run
from finetune_api.spec import FineTuneJobSpec
from finetune_api.status import EvaluationResult, Sample
from finetune_trainer import checkpoints, results
from finetune_trainer.callbacks import Course, timetable
from finetune_trainer.checkpoints import Store
from finetune_trainer.data.prepared import Prepared, SplitName, open_split, read_prepared, tokenizer_folder
from finetune_trainer.finetuner import FineTuner, Rows
from finetune_trainer.methods import METHODS
from finetune_trainer.models import device, loading
from finetune_trainer.objectives import OBJECTIVES
from finetune_trainer.pretrained.base_model import check_unchanged
from finetune_trainer.pretrained.initial_adapter import settled
from finetune_trainer.results import Baseline, HeldOut
from finetune_trainer.runtime.failures import Failure
from finetune_trainer.runtime.files import write_file
from finetune_trainer.runtime.progress import Progress
from finetune_trainer.runtime.stop import StopRequest
from finetune_trainer.runtime.workspace import Workspace
from finetune_trainer.samples import answers
from finetune_trainer.state import Identity, check_identity

log = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "tokenizers", "numpy")
"""Those whose versions can change a result."""
OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw8bit": "adamw_8bit",
    "pagedAdamw8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
"""transformers' names for `spec.training.optimizer`."""


@dataclass(frozen=True)
class Stage:
    """What every step of the stage needs to know."""

    run: Run
    page: Prepared
    workspace: Workspace
    progress: Progress
    stop: StopRequest
    identity: Identity

    @property
    def spec(self) -> FineTuneJobSpec:
        return settled(self.run.spec, self.workspace.start)

    def rows(self, name: SplitName) -> Rows | None:
        """The rows of a split; None where it is switched off or empty."""
        split = open_split(self.workspace, self.page, name)
        return Rows(split, packed=self.page.packing and name == "train") if split is not None and len(split) else None


def train(run: Run, workspace: Workspace, progress: Progress, stop: StopRequest | None = None) -> StageReport:
    """Run the stage; raises Failure, with reason Preempted after a stop that can be resumed."""
    stop = stop or StopRequest()
    stop.install()
    stage = stage_of(run, workspace, progress, stop)
    finished = results.read_own(workspace.result, stage.identity)
    if finished is not None:
        log.info("training is done already: nothing to do")
        return StageReport(stage="train", evaluation=finished.evaluation)
    check_unchanged(run, stage.page)
    _begin(stage)
    tuner = assemble(stage)
    baseline = _baseline(stage, tuner)
    course = follow(stage, tuner)
    evaluation = _finish(stage, tuner, course, baseline)
    return StageReport(stage="train", evaluation=evaluation)


def stage_of(run: Run, workspace: Workspace, progress: Progress, stop: StopRequest) -> Stage:
    page = read_prepared(workspace)
    if page is None:
        raise Failure(Reason.INPUT_UNAVAILABLE, f"{workspace.prepared} holds no prepared data: run `prepare` first")
    recipe = run.spec.to_wire(include={"objective", "method", "training"})
    if page.start is not None:
        recipe["start"] = page.start.digest
    identity = Identity(
        uid=run.uid,
        data=page.data.fingerprint or "",
        base=page.model_revision,
        recipe=hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest(),
    )
    return Stage(run, page, workspace, progress, stop, identity)


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


def assemble(stage: Stage) -> FineTuner:
    """The model with its method applied, inside its objective's trainer."""
    config = loading.config_of(Path(stage.page.model_path))
    objective, method = OBJECTIVES[stage.spec.objective.kind].suited(config), METHODS[stage.spec.method.kind]
    head = objective.head(tuple(stage.page.labels))
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
    arguments = _arguments(stage, on)
    rates = method.parameter_rates(model, options, arguments.learning_rate)
    tuner = objective(model, arguments, rows, stage.page.pad_token_id, dtype, method, rates)
    stage.stop.check()
    return tuner


def _arguments(stage: Stage, on: torch.device) -> transformers.TrainingArguments:
    """The spec in the words of transformers. It neither reports, evaluates nor saves: callbacks.py does."""
    training, plan = stage.spec.training, stage.page.plan
    micro, accumulation, steps = plan.micro_batch_size, plan.gradient_accumulation, plan.total_steps
    assert micro is not None
    assert accumulation is not None
    assert steps is not None
    assert training.learning_rate is not None
    arguments = transformers.TrainingArguments(
        output_dir=str(stage.workspace.checkpoints),
        max_steps=steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=2 * micro,
        gradient_accumulation_steps=accumulation,
        learning_rate=training.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(training.schedule, training.schedule),
        warmup_steps=round(steps * training.warmup_ratio),
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        optim=OPTIMIZERS[training.optimizer],
        activation_checkpointing=training.gradient_checkpointing,
        seed=training.seed,
        use_cpu=on.type == "cpu",
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # several would mean DataParallel, which is slower than one
    return arguments


def _baseline(stage: Stage, tuner: FineTuner) -> Baseline:
    """What the base model scores, measured before the first step; a resumed run finds it on the workspace."""
    place = stage.workspace.checkpoints / "baseline.json"
    if place.exists():
        baseline = Baseline.model_validate_json(place.read_bytes())
        check_identity(baseline.identity, stage.identity, place)
        return baseline
    tuned, tuner.model = tuner.model, tuner.method.untouched(tuner.model)
    baseline = Baseline(identity=stage.identity, held_out=_held_out(stage, tuner), answers=_answers(stage, tuner))
    tuner.model = tuned
    write_file(place, baseline.model_dump_json(by_alias=True))
    return baseline


def _held_out(stage: Stage, tuner: FineTuner) -> HeldOut | None:
    """Metrics on the test split, else on the validation split, else none."""
    stage.progress.update(activity="evaluating")
    for name in ("test", "validation"):
        rows = stage.rows(name)
        if rows is not None:
            metrics, details = tuner.assess(rows, stage.stop.check)
            return HeldOut(split=name, metrics=metrics, details=details)
    return None


def _answers(stage: Stage, tuner: FineTuner) -> list[str]:
    if not tuner.head(tuple(stage.page.labels)).generates:
        return []
    stage.progress.update(activity="generating")
    return answers(tuner, tokenizer_folder(stage.workspace), stage.spec.evaluation, stage.stop.check)


def follow(stage: Stage, tuner: FineTuner) -> Course:
    """Train from the latest checkpoint to the end, or to a stop."""
    assert stage.page.plan.total_steps is not None
    store = Store(stage.workspace.checkpoints, stage.identity, stage.spec.checkpoint.keep)
    tuner.resumed_from = store.latest()
    table = timetable(stage.spec, stage.page.plan.total_steps)
    course = Course(tuner, table, store, stage.rows("validation"), stage.progress, stage.stop)
    tuner.add_callback(course)
    stage.progress.update(
        activity="training",
        step=course.state.step,
        resumed_from_step=course.state.step,
        checkpoint_step=course.state.step,
    )
    if tuner.resumed_from is not None:
        log.info("resuming from step %d", course.state.step)
        checkpoints.restore_weights(tuner.resumed_from, tuner)
    course.catch_up()
    if not course.state.finished:
        tuner.train(resume_from_checkpoint=str(tuner.resumed_from.folder) if tuner.resumed_from else None)
    if not course.state.finished:
        raise Failure(Reason.PREEMPTED, f"stopped; the checkpoint of step {course.state.step} is saved")
    if course.state.best_step is not None:
        store.load_best(tuner.model, course.state.best_step)
    return course


def _finish(stage: Stage, tuner: FineTuner, course: Course, baseline: Baseline) -> EvaluationResult:
    """Measure the tuned model and leave the result."""
    held_out, after = _held_out(stage, tuner), _answers(stage, tuner)
    prompts = stage.spec.evaluation.prompts if after else []
    evaluation = EvaluationResult(
        split=held_out.split if held_out else None,
        base=baseline.held_out.metrics if baseline.held_out else None,
        tuned=held_out.metrics if held_out else None,
        best_step=course.state.best_step,
        samples=[
            Sample(prompt=prompt, before=old, after=new)
            for prompt, old, new in zip(prompts, baseline.answers, after, strict=True)
        ],
    )
    stage.progress.update(activity="writing")
    tuner.model.config.use_cache = tuner.use_cache  # transformers.Trainer turned it off for the training
    with results.draft(stage.workspace.result, _result(stage, course, evaluation, baseline, held_out)) as artifact:
        name = results.base_name(stage.spec.model.uri)
        METHODS[stage.spec.method.kind].save(tuner.model, artifact, name, stage.page.model_revision)
    return evaluation


def _result(
    stage: Stage, course: Course, evaluation: EvaluationResult, base: Baseline, tuned: HeldOut | None
) -> results.Result:
    quantized = getattr(course.tuner.model.config, "quantization_config", None)
    return results.Result(
        identity=stage.identity,
        evaluation=evaluation,
        state=course.state,
        details={"base": base.held_out.details if base.held_out else {}, "tuned": tuned.details if tuned else {}},
        kind=METHODS[stage.spec.method.kind].artifact,
        loader=METHODS[stage.spec.method.kind].loader,
        auto_class=course.tuner.head(()).auto_class,
        quantization={k: v for k, v in quantized.to_diff_dict().items() if k[0] != "_"} if quantized else None,
        versions={name: version(name) for name in LIBRARIES},
    )
