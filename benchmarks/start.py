"""How long the operator takes to import what it needs, against the same with the Kubernetes client as kopf finds it.

    .venv/bin/python benchmarks/start.py

CPU seconds of a process, the least of several rounds in turn: what else runs on the machine adds, and never takes away.
"""

import argparse
import resource
import subprocess
import sys

AS_IT_IS = [sys.executable, "-m", "finetune_operator", "--help"]
CASES = {
    "python alone": [sys.executable, "-c", "pass"],
    "kopf alone": [sys.executable, "-c", "import kopf"],
    "operator": AS_IT_IS,
    "operator, client and all": [
        sys.executable,
        "-c",
        "import kopf; from kubernetes.aio import client, config; import finetune_operator.main",
    ],
}


def cpu_seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, command in CASES.items():
            taken[name].append(cpu_seconds(command))
    least = {name: min(seconds) for name, seconds in taken.items()}
    print("| | CPU seconds |\n|---|---|")
    for name, seconds in least.items():
        print(f"| {name} | {seconds:.2f} |")
    print(f"\noperator ÷ operator, client and all: {least['operator'] / least['operator, client and all']:.2f}")


if __name__ == "__main__":
    main()
