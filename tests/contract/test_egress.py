"""The way out of the cluster, from a chart's value to a byte on disk: proxy, private certificates and another hub.

The names of the servers exist nowhere but in the proxy, and their certificate is trusted by nobody but the bundle: what
arrives has taken that way.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import servers
import tiny
from contract.chart import manifests, only
from finetune_api.run import Run
from finetune_operator import pods, settings
from unit.observed import METADATA, spec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
HUB, DATA = "hub.example.test", "data.example.test"


def environment_of_prepare(proxy: str, bundle: Path) -> dict[str, str]:
    """As in the pod under these values; the bundle is where a test can put it."""
    trainer = {
        "proxy": {"https": proxy, "noProxy": "localhost"},
        "caBundle": {"configMapName": "corporate-ca", "key": bundle.name},
        "hfEndpoint": f"https://{HUB}",
    }
    deployment = only("Deployment", manifests({"trainer": trainer}))
    platform = settings.parse(deployment["spec"]["template"]["spec"]["containers"][0]["args"], {})
    template = pods.pod_template(METADATA, spec(), "prepare", "image", platform)
    (container,) = template["spec"]["containers"]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "ca-bundle"]
    said = {one["name"]: one["value"] for one in container["env"]}
    return {name: value.replace(mount["mountPath"], str(bundle.parent)) for name, value in said.items()}


def test_prepare_fetches_through_the_proxy_by_private_certificates(tmp_path: Path) -> None:
    """Model from a hub of one's own, data from an https server: both by name, both through the proxy alone."""
    model = tiny.llama(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    data = tiny.jsonl(tmp_path / "train.jsonl", tiny.completions(60)).read_bytes()
    wanted = spec(
        model={"uri": "hf://team/model"},
        dataset={"train": [{"uri": f"https://{DATA}/train.jsonl"}]},
        output={"uri": "pvc://out/a"},
        training={"maxSteps": 2, "precision": "fp32"},
        resources={"gpus": 0, "cpu": 1},
    ).resolved()
    (tmp_path / "out").mkdir()
    mounts = {"pvc://out": str(tmp_path / "out")}
    run = Run(name="egress", uid="uid-1", workspace=str(tmp_path / "workspace"), spec=wanted, mounts=mounts)
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True, exclude_none=True))
    command = [sys.executable, "-m", "finetune_trainer", "prepare", "--run", str(tmp_path / "run.json"), "--port", "0"]
    own = {name: tmp_path / name for name in (HUB, DATA)}
    for folder in own.values():
        folder.mkdir()

    with (
        servers.https({"/train.jsonl": servers.Answer(data)}, own[DATA], DATA) as web,
        servers.hub({"models/team/model": servers.Repository(files)}, servers.certified(own[HUB], HUB)) as hub,
        servers.proxy({f"{HUB}:443": hub.port, f"{DATA}:443": web.port}) as proxy,
    ):
        bundle = tmp_path / "ca.pem"
        bundle.write_text("".join((folder / "cert.pem").read_text() for folder in own.values()))
        said = environment_of_prepare(proxy.url, bundle)
        environment = {"PATH": os.environ["PATH"], **said, "HOME": str(tmp_path)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

        assert done.returncode == 0, done.stdout + done.stderr
        assert {line.partition(":")[0] for line in proxy.seen} == {HUB, DATA}
        assert web.seen == ["/train.jsonl None"]
        assert hub.seen

        lonely = {
            name: value for name, value in environment.items() if name not in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
        }
        Path(run.workspace).rename(tmp_path / "done")
        done = subprocess.run(command, env=lonely, capture_output=True, text=True, check=False)
        assert done.returncode != 0, "nobody else vouches for these servers"
