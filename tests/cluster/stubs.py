"""Empty stand-ins for the GPU libraries that PyPI's torch wheel is linked with.

That wheel is the one production uses. It imports only if gigabytes of NVIDIA libraries are there, of which nothing is
called on a machine without a GPU. For each library that is missing, this makes one with the right name, the versions
and symbols that torch asks for, and functions that do nothing but return 1. Needs gcc and readelf; x86-64 only.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

NVIDIA = re.compile(r"lib(cu|nccl|nv)")
# Loaded by torch only once it has found a GPU.
NOT_NEEDED = {"libcuda.so.1"}
# These put no version on their symbols, so only the name says whose a symbol is.
PREFIX = {"libcusparseLt.so.0": ("cusparseLt",), "libnccl.so.2": ("nccl", "pnccl")}
# {version: {symbol: "FUNC" or "OBJECT"}}; the version is "" where a library has none.
Symbols = dict[str, dict[str, str]]


def make_stubs(packages: Path) -> list[Path]:
    """Write a stub of each missing library to where torch looks for it; `packages` is a site-packages folder."""
    libraries = sorted((packages / "torch" / "lib").glob("*.so"))
    present = {path.name for folder in ("torch", "nvidia") for path in (packages / folder).rglob("*.so*")}
    needed = {name for library in libraries for name in needed_by(library)}
    missing = {name for name in needed - present - NOT_NEEDED if NVIDIA.match(name)}
    versions, symbols = versions_of(libraries), undefined_in(libraries)
    folder = packages / "nvidia" / "cu13" / "lib"
    folder.mkdir(parents=True, exist_ok=True)
    for name in missing:
        write_library(folder / name, symbols_of(name, versions[name], symbols))
    return [folder / name for name in sorted(missing)]


def needed_by(library: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("--dynamic", library))


def versions_of(libraries: list[Path]) -> dict[str, set[str]]:
    """For each library that is linked with, the symbol versions that it has to define."""
    versions: dict[str, set[str]] = defaultdict(set)
    for library in libraries:
        # "Version needs" comes last; each "File:" is followed by the "Name:" of every version wanted of it.
        wanted = readelf("--version-info", library).rpartition("Version needs section")[2]
        for part in wanted.split("File: ")[1:]:
            versions[part.split()[0]].update(re.findall(r"Name: (\S+)", part))
    return versions


def undefined_in(libraries: list[Path]) -> Symbols:
    """What the libraries leave for others to define."""
    symbols: Symbols = defaultdict(dict)
    for library in libraries:
        for line in readelf("--dyn-syms", library).splitlines():
            fields = line.split()
            if len(fields) >= 8 and fields[6] == "UND":
                name, _, version = fields[7].partition("@")
                symbols[version.lstrip("@")][name] = fields[3]
    return symbols


def symbols_of(name: str, versions: set[str], symbols: Symbols) -> Symbols:
    if versions:
        return {version: symbols.get(version, {}) for version in sorted(versions)}
    prefixes = PREFIX.get(name, ())
    return {"": {symbol: kind for symbol, kind in symbols.get("", {}).items() if symbol.startswith(prefixes)}}


def write_library(path: Path, symbols: Symbols) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, script = Path(scratch, "stub.s"), Path(scratch, "stub.map")
        definitions = [definition(name, kind) for group in symbols.values() for name, kind in group.items()]
        source.write_text("\n".join([*definitions, '.section .note.GNU-stack,"",@progbits', ""]))
        script.write_text("\n".join(version_script(symbols)))
        command = ["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{path.name}", f"-Wl,--version-script={script}"]
        subprocess.run([*command, "-o", str(path), str(source)], check=True)


def definition(name: str, kind: str) -> str:
    """Assembly: a page of zeros for data; for a function, `return 1`, which every CUDA library reads as an error."""
    if kind == "OBJECT":
        return f".data\n.globl {name}\n.type {name},@object\n.size {name},4096\n{name}: .zero 4096"
    return f".text\n.globl {name}\n.type {name},@function\n{name}: mov $1,%eax\n ret"


def version_script(symbols: Symbols) -> list[str]:
    if "" in symbols:
        return ["{ global: *; };"]
    lists = {version: "".join(f"{name};" for name in names) for version, names in symbols.items()}
    return [f"{version} {{ {'global: ' if names else ''}{names} }};" for version, names in lists.items()]


def readelf(what: str, library: Path) -> str:
    return subprocess.run(["readelf", "--wide", what, str(library)], check=True, capture_output=True, text=True).stdout
