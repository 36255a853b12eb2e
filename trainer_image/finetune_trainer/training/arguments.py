"""A job's training in the words of transformers. It decides what of the Trainer's own habits is switched off."""

import torch
import transformers

from finetune_trainer.training.context import Stage

OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw8bit": "adamw_8bit",
    "pagedAdamw8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
"""transformers' names for `spec.training.optimizer`."""


def training_arguments(stage: Stage, on: torch.device) -> transformers.TrainingArguments:
    """The spec in the words of transformers. It neither reports, evaluates nor saves: callback.py does."""
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
    # Several would mean DataParallel, which is slower than one.
    arguments._n_gpu = min(1, arguments.n_gpu)  # noqa: SLF001 - no public name sets it
    return arguments
