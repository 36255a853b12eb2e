"""README.md of the artifact: what it is, what it learnt from, how good it is, and how to load it.

It says what was recorded. It measures nothing and opens no file.
"""

import json

from finetune_api.run import Run
from finetune_api.status import Metric, Sample
from finetune_api.text import printable_lines
from finetune_trainer.artifacts.result import Result, base_name
from finetune_trainer.data.prepared import Prepared
from finetune_trainer.pretrained.initial_adapter import Start

OPENING = {
    "peft": ("from peft import PeftModel", 'PeftModel.from_pretrained(base, ".")'),
    "finetune_trainer": ("from finetune_trainer.adapters import load_adapter", 'load_adapter(base, ".")'),
}
"""What opens an adapter: its import, and its call."""
METRICS = {
    Metric.LOSS: "Loss",
    Metric.PERPLEXITY: "Perplexity",
    Metric.ACCURACY: "Accuracy",
    Metric.MACRO_F1: "Macro-F1",
}


def model_card(run: Run, page: Prepared, result: Result) -> str:
    """The card as Markdown, with the header that model hubs read."""
    parts = [
        _header(run, result),
        f"# {run.name}\n",
        _summary(run, page, result),
        "## Held-out metrics\n",
        _metrics(result),
        "![Loss over the steps](loss.png)\n",
        "## Load it\n",
        loading(run, page, result),
        _precision(run, result),
        _samples(result.evaluation.samples),
        "## Training data\n",
        _data(run, page),
        "## How it was made\n",
        _provenance(run, page, result),
    ]
    return "\n".join(part for part in parts if part)


def _header(run: Run, result: Result) -> str:
    library = {"finetune_trainer": "finetune-operator"}.get(result.loader, result.loader)
    tags = f"[finetune-operator, {run.spec.objective.kind}, {run.spec.method.kind}]"
    name = json.dumps(base_name(run.spec.model.uri))
    return f"---\nbase_model: {name}\nlibrary_name: {library}\ntags: {tags}\n---\n"


def _summary(run: Run, page: Prepared, result: Result) -> str:
    what = "An adapter for" if result.kind == "adapter" else "A whole model, tuned from"
    moved, total = page.plan.trainable_parameters, page.plan.total_parameters
    share = f" {moved:,} of {total:,} parameters were trained." if moved and total else ""
    if page.start is not None and not result.state.step:
        return f"{what} `{run.spec.model.uri}`, {_origins(page.start)}. Nothing was trained.\n"
    began = f" It began as one {_origins(page.start)}." if page.start is not None else ""
    return (
        f"{what} `{run.spec.model.uri}`, fine-tuned with the objective `{run.spec.objective.kind}` and the method "
        f"`{run.spec.method.kind}` over {result.state.step:,} optimizer steps.{share}{began}\n"
    )


def _origins(start: Start) -> str:
    adapters = ", ".join(f"{one.weight:g} × `{one.uri}` (`{one.revision}`)" for one in start.adapters)
    return f"made by `{start.combination}` of {adapters}"


def _metrics(result: Result) -> str:
    evaluation = result.evaluation
    if evaluation.base is None or evaluation.tuned is None:
        return "No data was held out.\n"
    rows = [
        f"| {title} | {_figure(evaluation.base.get(metric))} | {_figure(evaluation.tuned[metric])} |"
        for metric, title in METRICS.items()
        if metric in evaluation.tuned
    ]
    lines = [
        f"On the {evaluation.split} split, which training never saw"
        + (":" if evaluation.split == "test" else ", but which chose the checkpoint:")
    ]
    return "\n".join([*lines, "", "| | base model | this model |", "|---|---|---|", *rows]) + "\n"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def loading(run: Run, page: Prepared, result: Result) -> str:
    """Python that loads the artifact from its own folder, with upstream libraries wherever they know the method."""
    classes = f"{result.auto_class}, AutoTokenizer" + (", BitsAndBytesConfig" if result.quantization else "")
    lines = [f"from transformers import {classes}", ""]
    if result.kind == "adapter":
        imported, opening = OPENING[result.loader]
        lines.insert(0, imported)
        if run.spec.model.uri.startswith("pvc://"):
            lines.append("# The base model is the folder that this URI names: mount the claim and put its path here.")
        lines += _base(run, page, result)
        lines.append(f"model = {opening}")
    else:
        lines.append(f'model = {result.auto_class}.from_pretrained(".")')
    lines.append('tokenizer = AutoTokenizer.from_pretrained(".")')
    return "\n".join(["```python", *lines, "```", ""])


def _base(run: Run, page: Prepared, result: Result) -> list[str]:
    """Lines that load the base model as it was while the adapter learnt."""
    arguments = _arguments(run, page)
    if result.quantization is None:
        return [f"base = {result.auto_class}.from_pretrained({arguments})"]
    settings = ", ".join(f"{name}={value!r}" for name, value in sorted(result.quantization.items()))
    dtype = result.quantization.get("bnb_4bit_compute_dtype", "float32")  # else that of the files, beside the 4 bits
    return [
        f"quantization = BitsAndBytesConfig({settings})",
        f"base = {result.auto_class}.from_pretrained({arguments}, dtype={dtype!r}, quantization_config=quantization)",
        "for layer in base.modules():  # else bitsandbytes computes otherwise than in training on some CPUs",
        "    layer.support_avx512bf16_for_cpu = False",
    ]


def _precision(run: Run, result: Result) -> str:
    """In which precision the base was, where that was not the full one."""
    if result.quantization is None:
        return ""
    code = result.quantization["bnb_4bit_quant_type"]
    lines = [f"The adapter learnt, and was measured, over a base model whose layers are held in 4 bits (`{code}`)."]
    if run.spec.output.merge:
        lines.append(
            "`merged/` is the sum of the adapter and the base model in full precision, which was never quantized: it "
            "says what the adapter says over that base, so its metrics differ a little from those above."
        )
    return " ".join(lines) + "\n"


def _arguments(run: Run, page: Prepared) -> str:
    arguments = [json.dumps(base_name(run.spec.model.uri))]
    if run.spec.model.uri.startswith("hf://"):
        arguments.append(f"revision={json.dumps(page.model_revision)}")
    if page.labels:
        labels = json.dumps({name: number for number, name in enumerate(page.labels)}, ensure_ascii=False)
        names = ", ".join(
            f"{number}: {json.dumps(name, ensure_ascii=False)}" for number, name in enumerate(page.labels)
        )
        arguments += [
            f"num_labels={len(page.labels)}",
            f"id2label={{{names}}}",
            f"label2id={labels}",
            f"pad_token_id={page.pad_token_id}",
        ]
    return ", ".join(arguments)


def _samples(samples: list[Sample]) -> str:
    if not samples:
        return ""
    said = [
        (title, text)
        for sample in samples
        for title, text in (("Prompt", sample.prompt), ("Base model", sample.before), ("This model", sample.after))
    ]
    return "\n".join(["## Before and after\n", *(f"**{title}**\n\n{_quoted(text)}" for title, text in said)])


def _quoted(text: str) -> str:
    return "".join(f"    {line}\n" for line in printable_lines(text or "(nothing)").split("\n"))


def _data(run: Run, page: Prepared) -> str:
    data = page.data
    counts = {
        "training records": data.train_examples,
        "validation records": data.validation_examples,
        "test records": data.test_examples,
        "tokens": data.tokens,
        "records cut at maxLength": data.truncated,
        "records dropped": data.dropped,
        "duplicates": data.duplicates,
    }
    sources = "".join(f"- `{source.uri}`\n" for source in run.spec.dataset.train)
    rows = "".join(f"| {name} | {count:,} |\n" for name, count in counts.items() if count is not None)
    return f"{sources}\n| | |\n|---|---|\n{rows}\nFingerprint: `{data.fingerprint}`\n"


def _provenance(run: Run, page: Prepared, result: Result) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    training, plan = run.spec.training, page.plan
    batch = (
        f"{(plan.micro_batch_size or 0) * (plan.gradient_accumulation or 0)} {'rows' if page.packing else 'records'}"
    )
    precision = f", products in {plan.precision}" if plan.precision else ""
    basis = f" ({plan.precision_basis})" if plan.precision_basis else ""
    return (
        f"Base model revision `{page.model_revision}`; {training.optimizer}, learning rate "
        f"{training.learning_rate:g}, {training.schedule} schedule, {batch} a step{precision}{basis}, "
        f"seed {training.seed}; {versions}. `manifest.json` holds the whole resolved specification, all versions, and "
        "the sha256 of every file.\n"
    )
