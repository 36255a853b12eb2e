"""Prompts of the spec, answered by the model as it is: greedily, through the chat template where there is one.

It decides how a prompt is put to a model. What the answers are compared with is decided elsewhere.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, StoppingCriteriaList

from finetune_api.spec.evaluation import Evaluation
from finetune_trainer.models.loading import tokenizer_of

LONGEST_ANSWER = 4000
"""Characters; the contract takes no more than 4,096."""


def answers(trainer: Any, tokenizer_folder: Path, evaluation: Evaluation, check: Callable[[], None]) -> list[str]:
    """One answer a prompt. `check` is called at each token and may raise."""
    if not evaluation.prompts:
        return []
    tokenizer = tokenizer_of(tokenizer_folder)
    trainer.model.eval()
    with torch.no_grad(), trainer.autocast():
        texts = [_answer(trainer, tokenizer, prompt, evaluation.max_new_tokens, check) for prompt in evaluation.prompts]
    trainer.model.train()
    return texts


def _answer(trainer: Any, tokenizer: Any, prompt: str, limit: int, check: Callable[[], None]) -> str:
    writes_apart = trainer.model.config.is_encoder_decoder
    encoded = _encoded(tokenizer, prompt).to(trainer.args.device)
    if writes_apart:
        # Left to itself transformers gives T5's decoder a cache for as many blocks as the encoder has.
        encoded = _ended(encoded, tokenizer) | {"past_key_values": EncoderDecoderCache(DynamicCache(), DynamicCache())}
    output = trainer.model.generate(
        **encoded,
        max_new_tokens=limit,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=trainer.objective.pad_token_id,
        use_cache=True,
        stopping_criteria=StoppingCriteriaList([_Interruptible(check)]),
    )
    begin = 0 if writes_apart else encoded["input_ids"].shape[1]
    text = str(tokenizer.decode(output[0, begin:], skip_special_tokens=True)).strip()
    return text[:LONGEST_ANSWER]


def _encoded(tokenizer: Any, prompt: str) -> Any:
    if not tokenizer.chat_template:
        return tokenizer(prompt, return_tensors="pt")
    turns = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def _ended(encoded: Any, tokenizer: Any) -> dict[str, Any]:
    """The prompt as inputs of an encoder-decoder are prepared (tokenization.py): with an end, unless it has one."""
    ids = encoded["input_ids"].long()
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if tokenizer.eos_token_id is not None and not special.intersection(ids[0, -1:].tolist()):
        ids = torch.cat([ids, ids.new_tensor([[tokenizer.eos_token_id]])], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class _Interruptible:
    """Never stops a generation by itself; lets `check` raise."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def __deepcopy__(self, memo: Any) -> "_Interruptible":
        """PEFT copies all that generation is given; a copy of what `check` looks at would never hear of a stop."""
        return self

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self._check()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
