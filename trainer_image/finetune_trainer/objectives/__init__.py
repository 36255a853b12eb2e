"""Every objective: a transformers.Trainer with a loss, the records that it reads, and what it measures."""

from finetune_trainer.objectives.classification import ClassificationTrainer
from finetune_trainer.objectives.sft import SftTrainer
from finetune_trainer.training.trainer import FineTuner

OBJECTIVES: dict[str, type[FineTuner]] = {"sft": SftTrainer, "classification": ClassificationTrainer}
