"""A container image made of one static program, written as the archive that `ctr images import` reads."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path

# The kernel's name for a machine, and Go's.
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


def program_image(program: Path) -> str:
    """The name of the image of a cached binary: its version folder is the tag, so a new build is a new image."""
    return f"localhost/{program.name}:{program.parent.name}"


def write_archive(program: Path, archive: Path) -> None:
    """Write an archive whose only layer holds `program` at the root, and whose entry point it is."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as files:
        files.add(program, arcname=program.name, filter=as_root)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": ARCHITECTURE[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [program_image(program)], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, mode="w") as files:
        add(files, "layer.tar", layer.getvalue())
        add(files, "config.json", json.dumps(config).encode())
        add(files, "manifest.json", json.dumps(manifest).encode())


def as_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    return entry


def add(files: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    files.addfile(entry, io.BytesIO(content))
