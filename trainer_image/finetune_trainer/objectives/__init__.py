"""Every objective: the records that it reads, a loss, and what it measures."""

from finetune_trainer.objectives.classification import Classification
from finetune_trainer.objectives.objective import Objective
from finetune_trainer.objectives.sft import Sft

OBJECTIVES: dict[str, type[Objective]] = {"sft": Sft, "classification": Classification}
