"""Every method by its name in `spec.method`."""

from finetune_trainer.methods.adalora import AdaLora
from finetune_trainer.methods.adapter import Adapter
from finetune_trainer.methods.bitfit import BitFit
from finetune_trainer.methods.full import Full
from finetune_trainer.methods.ia3 import Ia3
from finetune_trainer.methods.lora import Lora
from finetune_trainer.methods.method import TuningMethod
from finetune_trainer.methods.qalora import QaLora
from finetune_trainer.methods.qlora import QLora
from finetune_trainer.methods.unipelt import UniPelt
from finetune_trainer.methods.virtual_tokens import PrefixTuning, PromptTuning, PTuning, PTuningV2

METHODS: dict[str, TuningMethod] = {
    "lora": Lora(),
    "qlora": QLora(),
    "qaLora": QaLora(),
    "adaLora": AdaLora(),
    "ia3": Ia3(),
    "bitFit": BitFit(),
    "promptTuning": PromptTuning(),
    "prefixTuning": PrefixTuning(),
    "pTuning": PTuning(),
    "pTuningV2": PTuningV2(),
    "adapter": Adapter(),
    "uniPelt": UniPelt(),
    "full": Full(),
}
