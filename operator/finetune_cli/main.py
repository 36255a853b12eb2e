"""`finetune`, and `kubectl finetune`: the verbs and their options. What a verb does stands in the module of its name.

Imports inside the verbs are deliberate: `finetune --help` answers before the contract, CEL or a client is loaded.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from finetune_cli.commands.follow import Follower

app = typer.Typer(
    name="finetune",
    help="Fine-tune language models: check a job, run it on this machine, or follow it in a cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def validate(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="Manifests; `-` reads standard input.")],
    local: Annotated[bool, typer.Option("--local", help="As `finetune run` sees it: file:// is allowed.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print problems only.")] = False,
) -> None:
    """Check jobs without a cluster: the same rules and messages as at `kubectl apply`, with file and line."""
    from finetune_cli.commands.validate import validate as validated

    raise typer.Exit(validated(files, cluster=not local, quiet=quiet))


@app.command()
def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A manifest with one FineTuneJob; `-`: standard input.")],
    workspace: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where prepared data and checkpoints are kept. [.finetune/NAME]")
    ] = None,
    volume: Annotated[
        list[str] | None, typer.Option(metavar="CLAIM=DIR", help="The folder that pvc://CLAIM stands for; repeatable.")
    ] = None,
    config_map: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="The folder that configmap://NAME stands for.")
    ] = None,
    secret: Annotated[
        list[str] | None, typer.Option(metavar="NAME=DIR", help="A folder with the keys of a Secret as files.")
    ] = None,
    download_allow: Annotated[
        list[str] | None,
        typer.Option(metavar="HOST", help="A host or network that is not public and that https:// data may come from."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what an earlier run left in the workspace.")] = False,
) -> None:
    """Run a job on this machine, with live progress. Ctrl-C saves what is done; the same command goes on from there.

    Scheduling, retries, deadlines and suspension belong to a cluster: those fields are not looked at."""
    from finetune_cli.commands.run import Options, downloads, run_file
    from finetune_cli.local.mounts import MountError, folders

    named = {"pvc": volume, "configmap": config_map, "secret": secret}
    try:
        mounted = {
            root: folder for scheme, given in named.items() for root, folder in folders(scheme, given or []).items()
        }
        allowed = downloads(download_allow or [])
    except (MountError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(run_file(file, Options(workspace, mounted, fresh, allowed)))


@app.command()
def plan(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A manifest with one FineTuneJob; `-`: standard input.")],
    model: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A folder with the model's config.json; weights are not needed.")
    ] = None,
    gpu_memory: Annotated[
        str | None, typer.Option(metavar="QUANTITY", help="Plan for a GPU with this much, such as 24Gi.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """What a job would take with each method: trainable parameters, memory by part, the micro-batch that fits."""
    from finetune_cli.commands.plan import Options, plan_file

    raise typer.Exit(plan_file(file, Options(model, gpu_memory, as_json)))


@app.command()
def init(
    file: Annotated[str, typer.Argument(metavar="[FILE]", help="Where to write it; `-` is standard output.")] = "-",
    objective: Annotated[str, typer.Option(help="Which loss: sft, classification.")] = "sft",
    method: Annotated[
        str, typer.Option(help="Which parameters are trained: lora, full, … (`finetune plan` compares all).")
    ] = "lora",
    model: Annotated[str, typer.Option(metavar="URI")] = "hf://HuggingFaceTB/SmolLM2-135M-Instruct",
    data: Annotated[str, typer.Option(metavar="URI", help="Training data.")] = "pvc://datasets/train.jsonl",
    output: Annotated[
        str | None, typer.Option(metavar="URI", help="Folder for the result. [pvc://models/NAME]")
    ] = None,
    name: Annotated[str, typer.Option(help="The job's name.")] = "my-model",
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write a small commented job to start from."""
    from finetune_cli.commands.init import Choice, write

    raise typer.Exit(write(file, Choice(name, objective, method, model, data, output or f"pvc://models/{name}"), force))


Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="Default: that of the context.")]
Kubeconfig = Annotated[str | None, typer.Option(metavar="FILE", help="Default: KUBECONFIG, or ~/.kube/config.")]
Context = Annotated[str | None, typer.Option(metavar="NAME", help="Context of the kubeconfig to use.")]
JobName = Annotated[str, typer.Argument(metavar="NAME", help="A FineTuneJob.")]


@app.command()
def watch(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One job: ends with it. Default: all.")] = None,
    namespace: Namespace = None,
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A", help="Jobs of every namespace.")] = False,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Follow jobs in a cluster: phase, progress, loss, time left. With NAME: ends with the job, 0 if it succeeded."""
    _look(kubeconfig, context, namespace, lambda follower: follower.watch(name), everywhere=all_namespaces and not name)


@app.command()
def logs(
    name: JobName,
    stage: Annotated[str | None, typer.Option(help="prepare, train or publish. Default: the newest pod.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for the pod; go on until the job ends.")] = False,
    namespace: Namespace = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
) -> None:
    """Print what the trainer of a job printed."""
    _look(kubeconfig, context, namespace, lambda follower: follower.logs(name, stage, follow))


@app.command()
def describe(
    name: JobName, namespace: Namespace = None, kubeconfig: Kubeconfig = None, context: Context = None
) -> None:
    """All about one job: what was asked, progress, results, failure and the next step. Also `finetune status`."""
    _look(kubeconfig, context, namespace, lambda follower: follower.describe(name))


app.command(name="status", hidden=True)(describe)


@app.command()
def restart(name: JobName, namespace: Namespace = None, kubeconfig: Kubeconfig = None, context: Context = None) -> None:
    """Try again, by raising spec.restarts: a failed job goes on from its last checkpoint, a running one starts a new
    attempt. A job that has succeeded is not run again."""
    _look(kubeconfig, context, namespace, lambda follower: follower.restart(name))


def _look(
    kubeconfig: str | None,
    context: str | None,
    namespace: str | None,
    verb: "Callable[[Follower], int]",
    everywhere: bool = False,
) -> None:
    """Ask a cluster; what it refuses is said in a line, and Ctrl-C ends the asking."""
    from rich.markup import escape

    from finetune_cli.cluster import ClusterError, connect
    from finetune_cli.commands.follow import Follower
    from finetune_cli.views.terminal import err

    try:
        cluster = connect(kubeconfig, context)
        code = verb(Follower(cluster, None if everywhere else namespace or cluster.namespace))
    except ClusterError as error:
        err.print(f"[red]{escape(str(error))}[/red]")
        code = 1
    except KeyboardInterrupt:
        code = 130
    raise typer.Exit(code)
