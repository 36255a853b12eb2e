"""Where the time from `kubectl apply` to the first optimizer step goes, for a job that ran in a cluster.

    .venv/bin/python benchmarks/first_step.py docstring-writer --namespace finetune-demo

Reads what Kubernetes and the trainer's log say of the job's own pods, so every part is named by who spent it. Prints
Markdown. KUBECTL names the command (kubectl).
"""

import argparse
import json
import os
import re
import subprocess
import sys
from datetime import datetime
from typing import Any

Moment = tuple[str, datetime]
"""What had just ended, and when."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a FineTuneJob whose pods still exist")
    parser.add_argument("--namespace", "-n", default="default")
    options = parser.parse_args()
    job = kubectl(options.namespace, "get", "finetunejob", options.name, "--output=json")
    began = moment(json.loads(job)["metadata"]["creationTimestamp"])
    moments = [*stage_moments(options, "prepare"), *stage_moments(options, "train")]
    if not moments or not moments[-1][0].startswith("train: steps"):
        print(f"{options.name} has no training pod whose log shows a step: its pods may be gone", file=sys.stderr)
        return 1
    print("| part | seconds | since apply |\n|---|---|---|")
    last = began
    for part, end in moments:
        print(f"| {part} | {(end - last).total_seconds():.1f} | {(end - began).total_seconds():.1f} |")
        last = end
    return 0


def stage_moments(options: argparse.Namespace, stage: str) -> list[Moment]:
    """The ends of a stage's parts, in order."""
    selector = f"finetune.dev/job={options.name},finetune.dev/stage={stage}"
    pods = json.loads(kubectl(options.namespace, "get", "pods", "--selector", selector, "--output=json"))["items"]
    if not pods:
        return []
    pod = pods[0]
    lines = kubectl(options.namespace, "logs", pod["metadata"]["name"], "--timestamps").splitlines()
    return [*pod_moments(stage, pod), *(prepare_moments(pod, lines) if stage == "prepare" else train_moments(lines))]


def pod_moments(stage: str, pod: dict[str, Any]) -> list[Moment]:
    scheduled = next(one for one in pod["status"]["conditions"] if one["type"] == "PodScheduled")
    return [
        (f"{stage}: operator and Job controller make the pod", moment(pod["metadata"]["creationTimestamp"])),
        (f"{stage}: scheduling", moment(scheduled["lastTransitionTime"])),
        (f"{stage}: volumes, image, container", moment(terminated(pod)["startedAt"])),
    ]


def prepare_moments(pod: dict[str, Any], lines: list[str]) -> list[Moment]:
    seconds = next(float(found[1]) for line in lines if (found := re.search(r"data ready after ([\d.]+) s", line)))
    parts = [
        (
            f"prepare: import, check the model, read, render and tokenise ({seconds} s of it the data)",
            "data ready after",
        )
    ]
    parts += [("prepare: rest of the parameter count (it runs beside the data)", ": prepared in")]
    return [*marked(lines, parts), ("prepare: end of the container", moment(terminated(pod)["finishedAt"]))]


def train_moments(lines: list[str]) -> list[Moment]:
    found = marked(lines, [("train: import", " threads"), ("train: load the model", " on c")])
    first = next((line for line in lines if re.search(r": step \d+/\d+  loss", line)), None)
    if first is not None:
        steps = re.search(r": step (\d+)/", first)
        assert steps is not None
        found.append((f"train: steps 1 to {steps[1]}, and before them the base model on held-out data", stamp(first)))
    return found


def marked(lines: list[str], parts: list[tuple[str, str]]) -> list[Moment]:
    """Each part that ends with the first line that holds its mark."""
    return [(part, stamp(line)) for part, mark in parts if (line := next((one for one in lines if mark in one), ""))]


def terminated(pod: dict[str, Any]) -> dict[str, Any]:
    state = pod["status"]["containerStatuses"][0]["state"]
    times: dict[str, Any] = state.get("terminated") or state.get("running") or {}
    return times


def stamp(line: str) -> datetime:
    return moment(line.split(" ", 1)[0])


def moment(text: str) -> datetime:
    """Kubernetes has nanoseconds, Python microseconds."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*", r"\1", text).replace("Z", "+00:00"))


def kubectl(namespace: str, *arguments: str) -> str:
    command = [os.environ.get("KUBECTL", "kubectl"), "--namespace", namespace, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip())
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
