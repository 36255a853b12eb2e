"""The single node, seen from the host: namespaces, a link, a cgroup, and the traces to remove.

Decides what of the host is touched, and undoes exactly that. Knows nothing of the daemons inside (node_init.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.binaries import NODE, binary
from cluster.control_plane import SERVICE_RANGE
from cluster.node_settings import CGROUP, HOST_ADDRESS, HOST_LINK, KUBECONFIG, NODE_ADDRESS, POD_RANGE, STATE
from cluster.packages import install_missing
from cluster.paths import CLUSTER, FOLDER, ClusterError, locked

# The kubelet sets these for the whole machine, not for its namespaces.
MACHINE_SETTINGS = (
    "vm/overcommit_memory",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
MOUNT_POINTS = ("/var/lib/kubelet", "/var/lib/cni", "/var/log/containers")
NAMESPACES = ("--mount", "--propagation=private", "--net", "--pid", "--ipc", "--uts")
READY_SECONDS = 120.0
UNDO = CLUSTER / "undo.json"


def up() -> None:
    """Bring the node up; nothing to do if it is. ClusterError when it does not come up."""
    if os.geteuid() != 0:
        raise ClusterError("a node needs root (or a Docker engine, for kind): run this with sudo")
    for name in NODE:
        binary(name)
    install_missing()
    with locked(CLUSTER / "node"):
        if is_running() and (STATE / "ready").exists():
            print(f"already up: export KUBECONFIG={KUBECONFIG}")
            return
        remove_everything()
        start()
    print(f"up: export KUBECONFIG={KUBECONFIG}")


def down() -> None:
    """Kill the node and leave the machine as it was; nothing to do if there is none."""
    with locked(CLUSTER / "node"):
        remove_everything()
    print("down")


def status() -> str:
    if not is_running():
        return "down"
    return "up" if (STATE / "ready").exists() else "starting"


def run_inside(*command: str) -> str:
    """Run a command in the node's namespaces; what it says, or ClusterError with what it says."""
    if not is_running():
        raise ClusterError("there is no node: python tests/cluster up")
    enter = ["nsenter", f"--target={init_pid()}", "--mount", "--net", "--pid", "--ipc", "--uts", "--"]
    done = subprocess.run([*enter, *command], capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} (in the node): {done.stderr.strip()}")
    return done.stdout


def start() -> None:
    STATE.mkdir(parents=True)
    (STATE / "log").mkdir()
    record_machine()
    make_cgroups()
    for folder in MOUNT_POINTS:
        Path(folder).mkdir(parents=True, exist_ok=True)
    if shutil.which("modprobe"):  # without it they are built in
        subprocess.run(["modprobe", "--quiet", "--all", "overlay", "br_netfilter"], capture_output=True)
    outer = spawn_init()
    wait_until(lambda: init_pid() != 0, "the namespaces", 5)
    connect(init_pid())
    print_log_until_ready(outer)


def record_machine() -> None:
    """Before anything is touched: what `remove_everything` puts back."""
    settings = {name: value for name in MACHINE_SETTINGS if (value := machine_setting(name)) is not None}
    missing = [str(folder) for path in MOUNT_POINTS for folder in missing_folders(Path(path))]
    UNDO.write_text(json.dumps({"settings": settings, "folders": missing}))


def machine_setting(name: str) -> str | None:
    path = Path("/proc/sys") / name
    return path.read_text().strip() if path.exists() else None


def missing_folders(path: Path) -> list[Path]:
    """The folders that making `path` would make, innermost first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def spawn_init() -> int:
    """Start the namespaces with node_init as their process 1; the process returned is the one whose death ends all."""
    command = [
        "unshare",
        *NAMESPACES,
        "--fork",
        "--kill-child",
        "--mount-proc",
        sys.executable,
        str(FOLDER),
        "node-init",
    ]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    with (STATE / "log" / "node.log").open("ab") as log:
        outer = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    UNDO.write_text(json.dumps({**undo(), "outer": outer.pid, "started": start_time(outer.pid)}))
    return outer.pid


def connect(init: int) -> None:
    """A link between host and node, and routes over it: both end when the node's network namespace does."""
    ip("link", "add", HOST_LINK, "type", "veth", "peer", "name", "eth0", "netns", str(init))
    ip("address", "add", f"{HOST_ADDRESS}/30", "dev", HOST_LINK)
    ip("link", "set", HOST_LINK, "up")
    for addresses in (POD_RANGE, SERVICE_RANGE):
        ip("route", "add", addresses, "via", NODE_ADDRESS)


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def print_log_until_ready(outer: int) -> None:
    """Show what node_init says as it says it; ClusterError when it ends, or is not ready in time."""
    deadline = time.monotonic() + READY_SECONDS
    with (STATE / "log" / "node.log").open() as log:
        while not (STATE / "ready").exists():
            print(log.read(), end="", flush=True)
            if start_time(outer) is None or time.monotonic() > deadline:
                raise ClusterError(f"the node did not come up; logs are in {STATE / 'log'}\n{log.read()[-2000:]}")
            time.sleep(0.05)
        print(log.read(), end="", flush=True)


def remove_everything() -> None:
    """Kill the node, then put back what a kill leaves behind. From any state, any number of times."""
    if is_running():
        os.kill(undo()["outer"], signal.SIGKILL)
        wait_until(lambda: not is_running(), "the node to end", 10)
    wait_until(remove_cgroups, "the pods' processes to end", 20)
    if Path("/sys/class/net", HOST_LINK).exists():  # a dying connection can hold the namespace for a minute or two
        subprocess.run(["ip", "link", "delete", HOST_LINK], capture_output=True)
    for name, value in undo().get("settings", {}).items():
        if machine_setting(name) != value:
            (Path("/proc/sys") / name).write_text(value)
    for folder in undo().get("folders", []):
        if Path(folder).exists():
            Path(folder).rmdir()
    shutil.rmtree(STATE, ignore_errors=True)
    UNDO.unlink(missing_ok=True)


def undo() -> dict[str, Any]:
    return dict(json.loads(UNDO.read_text())) if UNDO.exists() else {}


def is_running() -> bool:
    """Whether the process that we started is alive: the same number and start time, so never somebody else's."""
    recorded = undo()
    return "outer" in recorded and start_time(recorded["outer"]) == recorded["started"]


def start_time(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None when it is gone, or a zombie that nobody reaped."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def init_pid() -> int:
    """The host's number of the node's process 1; 0 when there is none yet."""
    outer = undo().get("outer", 0)
    children = Path(f"/proc/{outer}/task/{outer}/children")
    return int((children.read_text().split() or ["0"])[0]) if children.exists() else 0


def make_cgroups() -> None:
    for root in cgroup_roots():
        folder = root / CGROUP
        folder.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems"):  # version 1: a new cpuset is empty, and takes no process
            if (folder / name).exists() and (root / name).exists():
                (folder / name).write_text((root / name).read_text())


def remove_cgroups() -> bool:
    """Remove our cgroups, innermost first; False while a process that is being killed still holds one."""
    try:
        for root in cgroup_roots():
            for folder, _, _ in os.walk(root / CGROUP, topdown=False):
                os.rmdir(folder)
    except OSError:
        return False
    return True


def cgroup_roots() -> list[Path]:
    """One folder for each hierarchy of version 1, one for version 2, all of them on a hybrid machine."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    return [Path(fields[1]) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]


def wait_until(is_true: Callable[[], bool], what: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            raise ClusterError(f"gave up after {seconds:.0f} s waiting for {what}")
        time.sleep(0.02)
