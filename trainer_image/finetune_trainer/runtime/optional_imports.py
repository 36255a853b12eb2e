"""Libraries that others import whenever they are installed, and that most runs have no use for.

To be called before transformers and PEFT are imported. It knows what needs such a library and nothing else.
"""

import sys

from finetune_api.spec.job_spec import FineTuneJobSpec

EIGHT_BIT_OPTIMIZERS = ("adamw8bit", "pagedAdamw8bit")


def leave_out_unused(spec: FineTuneJobSpec) -> None:
    """Hide what the run does not need: bitsandbytes costs each stage four seconds, datasets two where it is there."""
    hide("datasets")
    if not spec.method.options.needs_bitsandbytes and spec.training.optimizer not in EIGHT_BIT_OPTIMIZERS:
        hide("bitsandbytes")


def hide(library: str) -> None:
    """Have others find it not installed; without effect once it is imported."""
    sys.modules.setdefault(library, None)  # type: ignore[arg-type]
