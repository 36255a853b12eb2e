"""Every objective: a transformers.Trainer with a loss, the records that it reads, and what it measures."""

from finetune_trainer.finetuner import FineTuner
from finetune_trainer.objectives.classification import ClassificationTrainer
from finetune_trainer.objectives.sft import SftTrainer

OBJECTIVES: dict[str, type[FineTuner]] = {"sft": SftTrainer, "classification": ClassificationTrainer}
