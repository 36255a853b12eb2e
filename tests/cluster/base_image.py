"""The image below all others, made without a registry: Debian's smallest system and its Python, by debootstrap."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from cluster.binaries import without_addresses
from cluster.buildah import STORE, buildah, has_image
from cluster.paths import ClusterError, content_key, locked

SUITE = "bookworm"
PYTHON = "3.11"  # the one of SUITE
PACKAGES = "python3,ca-certificates"
# Downloads, indexes and manuals: half of the size, and nothing runs them.
USELESS = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log")
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def base_image() -> str:
    """The name of the image, made first if it is not there."""
    image = f"localhost/finetune-base:{content_key(SUITE, PACKAGES, *USELESS)}"
    with locked(STORE / "base"):
        if not has_image(image):
            print("making the Debian base image (about a minute, once) ...", file=sys.stderr, flush=True)
            make(image)
    return image


def make(image: str) -> None:
    root = STORE / "debian"
    shutil.rmtree(root, ignore_errors=True)
    bootstrap(root)
    for folder in USELESS:
        shutil.rmtree(root / folder, ignore_errors=True)
        (root / folder).mkdir()
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    # An archive, because copying a folder would give every file to root.
    archive = STORE / "debian.tar"
    subprocess.run(["tar", "--create", f"--file={archive}", f"--directory={root}", "."], check=True)
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(archive), "/")
    buildah("config", f"--env=PATH={SEARCH_PATH}", "--cmd=python", container)
    buildah("commit", "--quiet", "--rm", container, image)
    archive.unlink()
    shutil.rmtree(root)


def bootstrap(root: Path) -> None:
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(root)]
    # Its mounts (proc, sys) end with the namespace, also when it fails.
    done = subprocess.run(["unshare", "--mount", *command], capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"debootstrap failed:\n{without_addresses(done.stdout + done.stderr)[-1500:]}")
