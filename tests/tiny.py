"""Models and data small enough to make anew in every test: random weights, real file formats, no network.

    model = tiny.llama(tmp_path / "model")            # also tiny.gpt2, tiny.bert, tiny.t5, tiny.flan_t5
    data = tiny.jsonl(tmp_path / "train.jsonl", tiny.completions(32))

Each model is a folder in Hugging Face layout (config, tokenizer, safetensors), made in well under a second, the same
weights each time. Each set of rows follows one simple rule, so that a few dozen steps of training lower the loss.
"""

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

HIDDEN = 64
LAYERS = 2
POSITIONS = 256
EOS, PAD, START = "<|im_end|>", "<|pad|>", "<|im_start|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
KINDS = {
    "animal": ("cat", "dog", "horse", "mouse", "owl", "fox"),
    "colour": ("red", "green", "blue", "white", "black", "pink"),
    "number": ("one", "two", "three", "four", "five", "six"),
}


# --- models ---------------------------------------------------------------------------------------------------------


def llama(folder: Path, seed: int = 0) -> Path:
    """A decoder with rotary positions, grouped key-value heads and an untied head: 0.1 M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        **byte_vocabulary(),
    )
    return save(folder, LlamaForCausalLM, config, byte_tokenizer(), seed)


def gpt2(folder: Path, seed: int = 0) -> Path:
    """A decoder with learned positions, Conv1D layers and a tied head: what breaks code that expects a Llama."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=POSITIONS, **byte_vocabulary())
    return save(folder, GPT2LMHeadModel, config, byte_tokenizer(), seed)


def bert(folder: Path, seed: int = 0) -> Path:
    """An encoder with a WordPiece tokenizer that knows the words of `labelled` and spells the rest in letters."""
    from transformers import BertConfig, BertModel

    tokenizer = wordpiece_tokenizer()
    config = BertConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
    )
    return save(folder, BertModel, config, tokenizer, seed)


def t5(folder: Path, seed: int = 0, **shape: Any) -> Path:
    """An encoder-decoder: attention narrower than its states, halves that differ in depth, a tied head; 0.2 M
    parameters."""
    from transformers import T5Config, T5ForConditionalGeneration

    words = byte_vocabulary()
    usual = {"d_model": HIDDEN, "d_kv": 12, "d_ff": 2 * HIDDEN, "num_heads": 4, "num_layers": 2 * LAYERS}
    config = T5Config(
        **usual | {"num_decoder_layers": LAYERS, "decoder_start_token_id": words["pad_token_id"]} | words | shape
    )
    return save(folder, T5ForConditionalGeneration, config, byte_tokenizer(chat_template=None), seed)


def flan_t5(folder: Path, seed: int = 0) -> Path:
    """The same as T5 1.1 and Flan-T5 are: gated, and with a head of its own, of which only the weights tell."""
    from transformers import T5ForConditionalGeneration

    def untied(config: Any) -> Any:
        import torch

        model = T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        model.all_tied_weights_keys.pop("lm_head.weight")
        return model

    t5(folder, seed, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    config = T5ForConditionalGeneration.config_class.from_pretrained(folder)
    return save(folder, untied, config, byte_tokenizer(chat_template=None), seed)


def save(folder: Path, model_class: Any, config: Any, tokenizer: Any, seed: int) -> Path:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model_class(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- tokenizers -----------------------------------------------------------------------------------------------------


def byte_vocabulary() -> dict[str, int]:
    """The part of a config that the byte tokenizer settles."""
    tokenizer = byte_tokenizer()
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.convert_tokens_to_ids(START),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def byte_tokenizer(chat_template: str | None = CHAT_TEMPLATE) -> Any:
    """One token a byte, after the three special ones: any text goes in and comes back, 259 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = [PAD, START, EOS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=START,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=POSITIONS,
        chat_template=chat_template,
    )


def wordpiece_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [word for words in KINDS.values() for word in words]
    symbols = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, *LETTERS, *("##" + letter for letter in LETTERS)]
    vocabulary = {symbol: number for number, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        model_max_length=POSITIONS,
    )


# --- rows -----------------------------------------------------------------------------------------------------------


def completions(count: int) -> list[dict[str, str]]:
    """prompt/completion: a word of three letters, then the same word in capitals. All prompts differ up to 17,576."""
    return [{"prompt": f"{word} -> ", "completion": word.upper()} for word in words(count)]


def chats(count: int) -> list[dict[str, list[dict[str, str]]]]:
    """messages: the same task as one question and one answer."""
    return [
        {"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": word.upper()}]}
        for word in words(count)
    ]


def texts(count: int) -> list[dict[str, str]]:
    """text: plain lines."""
    return [{"text": f"{word} {word.upper()} {word}"} for word in words(count)]


def labelled(count: int) -> list[dict[str, str]]:
    """text/label: the kind of the one word that is not filler; three labels in turn. The texts differ."""
    kinds = list(KINDS)
    return [
        {"text": f"{word} {KINDS[kinds[number % 3]][number // 3 % 6]}", "label": kinds[number % 3]}
        for number, word in enumerate(words(count))
    ]


def words(count: int) -> list[str]:
    """Distinct three-letter words, spread over the alphabet (7,919 is prime to 26³)."""
    size = len(LETTERS)
    numbers = (number * 7919 % size**3 for number in range(count))
    return [LETTERS[n // size**2] + LETTERS[n // size % size] + LETTERS[n % size] for n in numbers]


# --- files ----------------------------------------------------------------------------------------------------------


def jsonl(path: Path, rows: Iterable[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def csv_file(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path
