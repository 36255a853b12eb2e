#!/bin/sh
# Make .venv: every dependency by hash from requirements/dev.txt, and this project as an editable install.
# Works on a fresh Debian 12; does nothing when nothing changed. Settings (all optional):
#   PYTHON          interpreter to use, 3.11 to 3.13        XDG_CACHE_HOME  where the pinned uv is kept
set -eu
cd "$(dirname "$0")/.."
cache=${XDG_CACHE_HOME:-$HOME/.cache}/finetune-operator
venv=.venv

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; }

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 /usr/bin/python3}; do
        if fits "$candidate"; then
            # Seen from inside .venv (its bin may come first on PATH): the interpreter below it.
            "$candidate" -c 'import sys; print(sys._base_executable)'
            return
        fi
    done
    die "no Python 3.11, 3.12 or 3.13 found; install one (Debian 12: apt-get install python3) or set PYTHON=/path/to/python"
}

# Debian splits venv's pip seed into a package of its own.
ensure_venv_module() { # PYTHON
    "$1" -c 'import ensurepip, venv' 2>/dev/null && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
        die "$1 cannot make virtual environments; run: sudo apt-get install python3-venv, then make setup again"
    say "installing python3-venv"
    apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
}

# uv lives outside the tree, one folder for each pinned version.
ensure_uv() { # PYTHON
    tools=$cache/uv/$(sha256sum requirements/bootstrap.txt | cut -c1-12)
    uv=$tools/bin/uv
    [ -x "$uv" ] && return
    ensure_venv_module "$1"
    say "installing $(head -n1 requirements/bootstrap.txt | cut -d' ' -f1) into $tools"
    rm -rf "$tools"
    "$1" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes \
        --requirement requirements/bootstrap.txt
}

python=$(find_python)
wanted=$(cat requirements/dev.txt requirements/bootstrap.txt pyproject.toml requirements/setup.sh | sha256sum | cut -d' ' -f1)
wanted="$wanted $("$python" -c 'import sys; print(sys.version.split()[0])')"

mkdir -p "$cache"
if command -v flock >/dev/null; then # two setups at once would undo each other
    exec 9>"$cache/setup.lock"
    flock 9
fi
[ "$(cat "$venv/setup.stamp" 2>/dev/null)" = "$wanted" ] && exit 0

ensure_uv "$python"
unset VIRTUAL_ENV
export UV_PYTHON_DOWNLOADS=never
# Behind a company proxy the right authorities are the machine's own.
[ -r /etc/ssl/certs/ca-certificates.crt ] && export UV_SYSTEM_CERTS=1
if [ "$("$venv/bin/python" -c 'import sys; print(sys.version.split()[0])' 2>/dev/null)" != "${wanted#* }" ]; then
    "$uv" venv --quiet --clear --python "$python" "$venv"
fi
rm -f "$venv/setup.stamp"
say "installing $(grep -c '==' requirements/dev.txt) packages into $venv (first time: about 3 GB, torch with CUDA)"
"$uv" pip sync --python "$venv" --require-hashes requirements/dev.txt
"$uv" pip install --quiet --python "$venv" --no-deps --no-build-isolation --editable .
echo "$wanted" >"$venv/setup.stamp"
say "ready: $venv"
