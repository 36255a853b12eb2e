"""Progress is pulled from the pods: what a page says is shown, and what a page does wrong hurts nobody."""

from __future__ import annotations

import itertools
import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from cluster.control_plane import ControlPlane, free_port
from integration.kubelet import Api, Job, eventually
from integration.operators import Operator, create_job, new_namespace
from integration.test_life import ARTIFACT, PREPARED, TRAINED

pytestmark = [pytest.mark.integration, pytest.mark.slow]

_addresses = (f"127.0.{number // 200}.{number % 200 + 10}" for number in itertools.count(200))
SILENT_AFTER = 3


class Trainer:
    """A trainer's HTTP server, on an address of its own as a pod has one."""

    def __init__(self, port: int) -> None:
        self.address = next(_addresses)
        self.page: bytes = b""
        self.status = 200
        self.headers: dict[str, str] = {}
        self.hangs = False
        self.requests = 0
        self._let_go = Event()
        trainer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trainer.requests += 1
                if trainer.hangs:
                    trainer._let_go.wait(30)
                    return
                self.send_response(trainer.status)
                for name, value in trainer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(trainer.page)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer((self.address, port), Handler)
        self._server.daemon_threads = True
        Thread(target=self._server.serve_forever, daemon=True).start()

    def report(self, **report: object) -> None:
        self.page = json.dumps({"stage": "train", "activity": "training", **report}).encode()

    def stop(self) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def reader(
    control_plane: ControlPlane, api: Api, port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    """An operator in a hurry."""
    flags = ["--trainer-port", str(port), "--progress-seconds", "0.2", "--silent-after", str(SILENT_AFTER)]
    log = tmp_path_factory.mktemp("reader") / "log"
    running = Operator(control_plane, new_namespace(api), log, *flags, "--stalled-after", "3").wait_ready()
    yield running
    assert running.is_alive()
    running.stop()


@pytest.fixture
def new_trainer(port: int) -> Iterator[Callable[[], Trainer]]:
    started: list[Trainer] = []

    def start() -> Trainer:
        started.append(Trainer(port))
        return started[-1]

    yield start
    for trainer in started:
        trainer.stop()


@pytest.fixture
def training(api: Api, reader: Operator) -> Callable[[Trainer], Job]:
    """A job whose training pod is this trainer."""

    def training(trainer: Trainer) -> Job:
        job = create_job(api, reader.namespace)
        job.run_stage("prepare", **PREPARED)
        job.new_pod("train").start(trainer.address)
        job.wait_reason("Training")
        return job

    return training


Training = Callable[[Trainer], Job]
NewTrainer = Callable[[], Trainer]


def metrics(operator: Operator) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{operator.port}/metrics", timeout=5) as response:
        return str(response.read().decode())


def metric(operator: Operator, series: str, **labels: str) -> float:
    """The value of a series; -1 where there is none."""
    for line in metrics(operator).splitlines():
        found, _, value = line.rpartition(" ")
        if found.partition("{")[0] == series and all(f'{key}="{one}"' in found for key, one in labels.items()):
            return float(value)
    return -1


def test_the_page_is_shown_in_status_and_metrics(reader: Operator, new_trainer: NewTrainer, training: Training) -> None:
    """Step, percent and loss as the page says them; a time of arrival as soon as two steps have been seen."""
    trainer = new_trainer()
    trainer.report(step=10, totalSteps=100, loss=2.5)
    job = training(trainer)
    eventually(lambda: job.status().get("progress", {}).get("step") == 10, "step 10 is shown")
    assert job.status()["progress"]["percent"] == 10
    for step in (11, 12, 13):
        time.sleep(1)
        trainer.report(step=step, totalSteps=100, loss=2.25)
    eta = eventually(lambda: job.status()["progress"].get("etaSeconds"), "a time of arrival")
    assert 40 < eta < 200
    eventually(lambda: metric(reader, "finetune_job_step", name=job.name) == 13, "the latest step in the metrics")
    assert metric(reader, "finetune_job_loss", name=job.name) == 2.25


def test_the_series_of_a_finished_job_go_away(reader: Operator, new_trainer: NewTrainer, training: Training) -> None:
    """The last word stands in the status; no series bears the job's name any more."""
    trainer = new_trainer()
    trainer.report(step=50, totalSteps=100, loss=2.5)
    job = training(trainer)
    eventually(lambda: metric(reader, "finetune_job_step", name=job.name) == 50, "a series of the job")
    job.pods("train")[0].end(0, {"stage": "train", **TRAINED})
    job.run_stage("publish", **ARTIFACT)
    progress = job.wait_phase("Succeeded")["progress"]
    assert (progress["step"], progress.get("etaSeconds")) == (100, None)
    eventually(lambda: f'name="{job.name}"' not in metrics(reader), "no series of the job")


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (b"\xff\xfe not json", "content"),
        (b'{"stage": "train", "step": -1}', "content"),
        (b'{"stage": "train", "step": 1, "surprise": true}', "content"),
        (b'{"stage": "train", "loss": 1e999}', "content"),
        (b'{"stage": "prepare", "step": 1}', "stage"),
        (b"[" * 16000, "content"),
        (b"x" * 5_000_000, "size"),
    ],
    ids=["bytes", "negative", "unknown", "infinite", "stage", "deep", "megabytes"],
)
def test_garbage_is_counted_and_ignored(
    reader: Operator, new_trainer: NewTrainer, training: Training, page: bytes, problem: str
) -> None:
    """Nothing of it reaches the status; the job is not touched for it."""
    trainer = new_trainer()
    trainer.page = page
    before = max(0.0, metric(reader, "finetune_progress_failures_total", problem=problem))
    job = training(trainer)
    counted = lambda: metric(reader, "finetune_progress_failures_total", problem=problem) > before  # noqa: E731
    eventually(counted, "the page is counted")
    assert job.status().get("progress") is None
    assert job.condition("Progressing")["reason"] == "Training"


def test_a_redirect_is_not_followed(reader: Operator, new_trainer: NewTrainer, training: Training) -> None:
    """A pod cannot send the operator elsewhere."""
    trainer, other = new_trainer(), new_trainer()
    other.report(step=99, totalSteps=100)
    trainer.status, trainer.headers = 302, {"Location": f"http://{other.address}/progress"}
    job = training(trainer)
    eventually(lambda: trainer.requests > 2, "the page is asked for")
    assert other.requests == 0
    assert job.status().get("progress") is None


def test_a_trainer_that_hangs_is_named_and_left_alone(
    reader: Operator, new_trainer: NewTrainer, training: Training
) -> None:
    """It becomes a condition, is asked ever more rarely, and delays no other job."""
    silent, lively = new_trainer(), new_trainer()
    silent.hangs = True
    lively.report(step=10, totalSteps=100)
    hung, job = training(silent), training(lively)
    hung.wait_reason("NoReports", seconds=SILENT_AFTER + 10)
    assert not hung.pods("train")[0].is_deleting()
    lively.report(step=20, totalSteps=100)
    eventually(lambda: job.status()["progress"]["step"] == 20, "the other job's progress", 10)
    silent.hangs = False
    silent.report(step=1, totalSteps=100)
    hung.wait_reason("Training", seconds=40)


def test_a_run_that_stands_still_is_named(reader: Operator, new_trainer: NewTrainer, training: Training) -> None:
    """The same step for too long is Stalled; the next step takes it back."""
    trainer = new_trainer()
    trainer.report(step=7, totalSteps=100)
    job = training(trainer)
    assert "at step 7" in job.wait_reason("Stalled")["message"]
    trainer.report(step=8, totalSteps=100)
    job.wait_reason("Training")


def test_the_port_is_the_pods_own(
    api: Api, namespace: str, start_operator: Callable[..., Operator], port: int, new_trainer: NewTrainer
) -> None:
    """An operator that is started anew with another --trainer-port still reads the pods that were made before."""
    trainer = new_trainer()
    trainer.report(step=10, totalSteps=100)
    first = start_operator("--trainer-port", str(port))
    job = create_job(api, namespace)
    job.run_stage("prepare", **PREPARED)
    pod = job.new_pod("train")
    first.stop()
    start_operator("--trainer-port", str(free_port()))
    pod.start(trainer.address)
    eventually(lambda: job.status().get("progress", {}).get("step") == 10, "step 10 is shown")
