"""The layer of Python dependencies, made once for each content of requirements/*.txt, to stand below our code.

A registry's image would be built by the Dockerfile's own stage. Here the GPU libraries of the trainer (4 of its 5 GB)
are left out, with stubs in their place: the torch wheel is the one of production, its GPU side cannot be used.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from cluster.base_image import PYTHON, base_image
from cluster.binaries import pip, without_addresses
from cluster.buildah import STORE, buildah, has_image
from cluster.paths import FOLDER, REPOSITORY, ClusterError, content_key, locked
from cluster.stubs import make_stubs

SITE_PACKAGES = f"/usr/local/lib/python{PYTHON}/dist-packages"
GPU_ONLY = re.compile(r"nvidia-|cuda-|triton\b")
# Small, and torch calls them when it is imported.
KEPT = re.compile(r"nvidia-(cuda-runtime|cuda-cupti|cufile)\b")
USELESS = ("torch/include", "torch/share", "torch/test", "pyarrow/include", "**/tests")


def dependency_image(component: str) -> str:
    """The name of the image with what requirements/`component`.txt lists, made first if it is not there."""
    requirements = REPOSITORY / "requirements" / f"{component}.txt"
    base = base_image()
    key = content_key(requirements, FOLDER / "stubs.py", base, GPU_ONLY.pattern, KEPT.pattern, *USELESS)
    image = f"localhost/finetune-{component}-deps:{key}"
    with locked(STORE / f"{component}-deps"):
        if not has_image(image):
            make(component, requirements, base, image)
    return image


def make(component: str, requirements: Path, base: str, image: str) -> None:
    started = time.monotonic()
    print(f"making the {component}'s dependency layer (a minute or two, once) ...", file=sys.stderr, flush=True)
    packages = STORE / f"{component}-packages"
    shutil.rmtree(packages, ignore_errors=True)
    install(requirements.read_text(), packages)
    prune(packages)
    if (packages / "torch").exists():
        make_stubs(packages)
    container = buildah("from", base)
    buildah("copy", "--quiet", container, str(packages), SITE_PACKAGES)
    # Half of a trainer's start is compiling what it imports; a read-only root could never keep the result.
    # Some packages carry files for a newer Python: those fail, and would fail when imported.
    buildah("run", container, "--", "sh", "-c", f"python -m compileall -qq -j2 {SITE_PACKAGES}; true")
    buildah("commit", "--quiet", "--rm", "--disable-compression", container, image)
    shutil.rmtree(packages)
    print(f"made {image} in {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def install(requirements: str, packages: Path) -> None:
    """Install exactly what is listed, by hash, less the GPU libraries."""
    wanted = STORE / f"{packages.name}.txt"
    wanted.write_text(without_gpu(requirements))
    exact = ["--no-deps", "--require-hashes", "--only-binary=:all:", f"--python-version={PYTHON}"]
    command = [*pip(), *exact, f"--target={packages}", f"--requirement={wanted}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"could not install {wanted}:\n{without_addresses(done.stderr)[-1500:]}")


def without_gpu(requirements: str) -> str:
    """A requirements file less its GPU-only entries; an entry goes on for as long as lines are indented."""
    entries = re.split(r"^(?=[^\s#])", requirements, flags=re.MULTILINE)
    return "".join(entry for entry in entries if KEPT.match(entry) or not GPU_ONLY.match(entry))


def prune(packages: Path) -> None:
    """Remove what no training imports. Files are links into the installer's cache: removed, never changed."""
    for pattern in USELESS:
        for folder in list(packages.glob(pattern)):
            shutil.rmtree(folder, ignore_errors=True)
