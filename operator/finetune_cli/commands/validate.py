"""Prints what validation found, for people: `file:line: message`, and below it what the field means."""

from rich.markup import escape
from rich.text import Text

from finetune_cli.manifest import document
from finetune_cli.manifest.document import Document, UnreadableError
from finetune_cli.manifest.validation import Problem, check, describe, is_foreign, is_job, only_job
from finetune_cli.views.terminal import err, out, plain


def validate(files: list[str], cluster: bool, quiet: bool) -> int:
    """Check every FineTuneJob in `files`; returns the exit code: 0 all accepted, 1 something refused or unreadable."""
    return max(_file(file, cluster, quiet) for file in files)


def _file(file: str, cluster: bool, quiet: bool) -> int:
    try:
        documents = document.read(file)
    except UnreadableError as error:
        err.print(f"[red]{escape(str(error))}[/red]")
        return 1
    jobs = [found for found in documents if is_job(found.value)]
    if not jobs and documents and is_foreign(documents[0].value):
        err.print(f"[dim]{escape(file)}: no FineTuneJob in it, left alone[/dim]")
        return 0
    jobs = jobs or documents[:1]
    if not jobs:
        err.print(f"[red]{escape(file)}: nothing in it: expected a FineTuneJob[/red]")
        return 1
    problems = [(job, check(job, cluster)) for job in jobs]
    for job, found in problems:
        report(job, found)
        if not found and not quiet:
            out.print(f"[green]✓[/green] {escape(job.file)}: FineTuneJob {_name(job)} is valid")
    return int(any(found for _, found in problems))


def accepted(file: str) -> Document | None:
    """The one FineTuneJob in `file`, as this machine may run it; None where it is refused, which is told."""
    try:
        job = only_job(file)
    except UnreadableError as error:
        err.print(f"[red]{escape(str(error))}[/red]")
        return None
    problems = check(job, cluster=False)
    report(job, problems)
    return None if problems else job


def report(job: Document, problems: list[Problem]) -> None:
    """Print `problems` to standard error."""
    for problem in problems:
        err.print(Text.assemble(plain(f"{job.file}:{problem.line}:", "red"), " ", plain(str(problem))))
        meaning = describe(problem.path) if problem.path else ""
        if meaning:
            err.print(plain(f"    {problem.path}: {meaning}", "dim"))


def _name(job: Document) -> str:
    metadata = job.value["metadata"]
    return escape(str(metadata.get("name") or f"{metadata['generateName']}…"))
