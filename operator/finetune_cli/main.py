"""`finetune`, and `kubectl finetune`: the verbs and their options. What a verb does stands in the module of its name.

Imports inside the verbs are deliberate: `finetune --help` answers before the contract, CEL or a client is loaded.
"""

from pathlib import Path
from typing import Annotated

import typer

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
    from finetune_cli.verdict import verdict

    raise typer.Exit(verdict(files, cluster=not local, quiet=quiet))


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
    fresh: Annotated[bool, typer.Option("--fresh", help="Discard what an earlier run left in the workspace.")] = False,
) -> None:
    """Run a job on this machine, with live progress. Ctrl-C saves what is done; the same command goes on from there."""
    from finetune_cli.local import Options, run_file
    from finetune_cli.mounts import MountError, folders

    named = {"pvc": volume, "configmap": config_map, "secret": secret}
    try:
        mounted = {
            root: folder for scheme, given in named.items() for root, folder in folders(scheme, given or []).items()
        }
    except MountError as error:
        raise typer.BadParameter(str(error)) from None
    raise typer.Exit(run_file(file, Options(workspace, mounted, fresh)))
