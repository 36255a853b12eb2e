"""Lines that each method took: its options and its module, less layers and other methods of the same module.

    .venv/bin/python benchmarks/method_lines.py

Beside them a method takes three lines: its member of `Method`, its registration, and its line in tests/training.py.
Blank lines and docstrings count; what methods of one module share counts for each of them.
"""

import inspect
from types import ModuleType

import torch
from torch import nn

from finetune_api.spec.methods import Method
from finetune_trainer.methods import METHODS
from finetune_trainer.methods.method import TuningMethod

REGISTRATIONS = 3
LAYERS = (nn.Module, torch.autograd.Function)


def main() -> None:
    print("| method | options | module | with registrations |\n|---|---|---|---|")
    for kind, method in METHODS.items():
        options = length(type(Method.model_validate({kind: {}}).options))
        own = method_lines(type(method))
        print(f"| `{kind}` | {options} | {own} | {options + own + REGISTRATIONS} |")


def method_lines(method: type) -> int:
    """Of its module, less what is a layer or another method there."""
    module = inspect.getmodule(method)
    assert module is not None
    others = [found for found in classes(module) if found is not method and issubclass(found, (*LAYERS, TuningMethod))]
    return length(module) - sum(length(other) for other in others)


def classes(module: ModuleType) -> list[type]:
    return [found for found in vars(module).values() if inspect.isclass(found) and found.__module__ == module.__name__]


def length(source: type | ModuleType) -> int:
    return len(inspect.getsource(source).splitlines())


if __name__ == "__main__":
    main()
