"""The command `warmstart`. Heavy libraries are imported by the commands that need them, so that `--help` answers at once."""

from __future__ import annotations

import atexit
import enum
import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from flows import service_commands
from flows.arguments import AsJson, Overrides, RecipePath

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help="Pretrain once, fine-tune many: train, evaluate, register and serve models with Prefect and MLflow.")  # fmt: skip

FromStage = Annotated[str, typer.Option("--from", metavar="STAGE", help="Do this stage and those after it anew.")]


class Scoring(enum.StrEnum):
    local = "local"
    ray = "ray"


class Engine(enum.StrEnum):
    torch = "torch"
    onnx = "onnx"
    int8 = "int8"


ALONE = ("up", "down", "status", "recipes", "show", "check")
"""Commands that use no server of `warmstart up`."""


@app.callback()
def begin(context: typer.Context) -> None:
    if context.invoked_subcommand not in ALONE:
        from mlflow_server import in_use

        in_use.adopt()


@app.command()
def run(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False, from_stage: FromStage = "") -> None:
    """Run the whole pipeline.

    Preprocess, pretrain, split, fine-tune, evaluate, register.
    """
    _run("flows.pipeline", "pipeline", "show_result", recipe, overrides, as_json, from_stage)


def _run(module: str, flow: str, show: str, recipe: Path, overrides: list[str] | None, as_json: bool, from_stage: str) -> None:
    """Runs the flow of that name on a recipe, and prints or shows its result."""
    with _standard_output(as_json) as output:
        from flows.session import session
        from ml.recipe_file import read

        content = read(recipe, overrides or [])
        with session() as prefect:
            from flows.console import Console
            from ml.recipe import parse
            from tasks.stage import home, redo_from, storage

            console = Console()
            checked = parse(content)
            redo_from(from_stage)
            checked.data.source.make().fingerprint()  # what is wrong with the data's place shows before a server is waited for
            home()
            storage()
            prefect.wait()
            run_it = getattr(importlib.import_module(module), flow)
            with console.listening():
                result = run_it(checked, from_stage)
        if as_json:
            print(json.dumps(result, indent=2, allow_nan=False), file=output)
        else:
            getattr(console, show)(result)


@app.command()
def pretrain(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False, from_stage: FromStage = "") -> None:
    """Preprocess and pretrain alone.

    The backbone is registered; `run` with the same settings goes on from there.
    """
    _run("flows.pretrain", "pretrain", "show_pretraining", recipe, overrides, as_json, from_stage)


@app.command()
def predict(
    model_uri: Annotated[str, typer.Argument(help="A registered model, such as models:/digits@champion.")],
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Files, folders, Parquet, CSV or JSONL.")],
    output: Annotated[Path, typer.Option(help="The Parquet file to write.")],
    batch_size: Annotated[int, typer.Option(min=1, max=65536, help="Items scored at once.")] = 256,
    column: Annotated[str, typer.Option(help="Column to score in Parquet, CSV and JSONL; unset, by its name: image or path, text or sentence.")] = "",
    engine: Annotated[Engine, typer.Option(help="torch, or for versions registered with registration.onnx=true onnx: the same labels, on a CPU faster for small convolutional networks; with registration.int8=true int8: weights of 8 bits.")] = Engine.torch,
    compute: Annotated[Scoring, typer.Option(help="local: this process. ray: a Ray cluster, as with compute.engine=ray in a recipe.")] = Scoring.local,
    workers: Annotated[int, typer.Option(min=1, max=1024, help="With --compute ray: processes that score, on a core or a GPU each.")] = 1,
    address: Annotated[str, typer.Option(help="With --compute ray: the cluster, HOST:PORT, ray://HOST:PORT or auto; unset, one of this machine alone is started.")] = "",
) -> None:
    """Score files with a registered model.

    Files, folders, Parquet, CSV or JSONL; bad items get a row with the reason.
    """
    from flows.session import session

    with session() as prefect:
        from flows.console import Console
        from ml.scoring import check_places

        console = Console()
        check_places(inputs, output)  # shows before a server is waited for
        prefect.wait()
        from flows.predict import predict as score

        with console.listening():
            summary = score(model_uri, inputs, str(output), batch_size, column, engine.value, compute.value, workers, address)
    console.show_prediction(summary)


@app.command()
def check(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Check a recipe and its data, and estimate cost.

    Memory and time are estimated from a few updates; nothing is trained.
    """
    with _standard_output(as_json) as output:
        from flows.check import check as examine
        from flows.console import Console
        from ml.recipe import load

        console = Console()
        with console.listening():
            found = examine(load(recipe, overrides or []))
        if as_json:
            print(json.dumps(found, indent=2, allow_nan=False), file=output)
        else:
            console.show_check(found)


@app.command()
def join() -> None:
    """Train along with other machines.

    Takes part in each training of several machines that is started by another one with the same WARMSTART_HOME; until interrupted.
    """
    import logging

    from ml.interruption import interruption
    from ml.joining import join as take_part
    from tasks.stage import home

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with interruption() as asked:
        take_part(home() / "work", lambda: asked.requested)


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="A registered model's name.")],
    version: Annotated[int, typer.Argument(help="The version to make the champion.")],
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "by hand",
) -> None:
    """Make a version the champion by hand.

    The one before becomes `previous`.
    """
    from tasks.tracking import database, registry

    database.prepare()
    before, found = registry.move(model, version, reason)
    typer.echo(f"{found.uri} is the champion of {model}{f', in place of version {before.version}' if before else ''}")


@app.command()
def rollback(
    model: Annotated[str, typer.Argument(help="A registered model's name.")],
    reason: Annotated[str, typer.Option(help="Why, for the audit log.")] = "by hand",
) -> None:
    """Make the previous champion the champion again."""
    from tasks.tracking import database, registry

    database.prepare()
    _, found = registry.move(model, None, reason)
    typer.echo(f"{found.uri} is the champion of {model} again")


@app.command()
def serve(
    model: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="A registered model, such as digits@champion or models:/digits/3.")],
    host: Annotated[str, typer.Option(help="Address to listen on; one beyond this machine demands the token WARMSTART_SERVE_TOKEN.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8080,
    allow_host: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A further name that clients call the server by, such as that of a proxy.")] = None,
    follow: Annotated[float, typer.Option(min=0.05, help="Seconds between looks at which version the alias names.")] = 5.0,
    batch_rows: Annotated[int, typer.Option(min=1, max=65536, help="Rows of waiting requests that are computed at once.")] = 64,
    batch_wait: Annotated[float, typer.Option(min=0, max=10000, help="Milliseconds that a request waits for others to be computed with; those that come while the model computes are put together anyway.")] = 0.0,
    max_rows: Annotated[int, typer.Option(min=1, help="Rows of one request.")] = 1024,
    max_mib: Annotated[float, typer.Option(min=0.001, help="MiB of one request's body.")] = 32.0,
    max_requests: Annotated[int, typer.Option(min=1, help="Requests under way at once; further ones get HTTP 503.")] = 64,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds until a request gets HTTP 504.")] = 60.0,
    threads: Annotated[int, typer.Option(min=0, max=1024, help="Threads of the model on a CPU; 0 takes OMP_NUM_THREADS, or all cores.")] = 0,
    sample: Annotated[float, typer.Option(min=0, max=1, help="Share of the rows that are kept, with their answers, in the folder --samples.")] = 0.0,
    samples: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where rows that users sent are kept, as Parquet. Unset, nothing is.")] = None,
    samples_mib: Annotated[float, typer.Option(min=64, help="MiB of samples; beyond, the oldest are deleted.")] = 1024.0,
) -> None:
    """Serve a registered model over REST.

    MLflow's protocol, a page to try it in the browser, metrics for Prometheus; it follows the alias.
    """
    from tasks.serve.app import Limits
    from tasks.serve.server import serve as run_server

    limits = Limits(int(max_mib * 2**20), max_rows, timeout, max_requests)
    run_server(model, host, port, allow_host or [], limits, batch_rows, batch_wait / 1000, follow, threads, sample, samples, int(samples_mib * 2**20))


@app.command()
def recipes() -> None:
    """List the recipes that there are."""
    from flows.catalogue import recipes as found

    for path, words in found():
        typer.echo(f"{path}\n    {words}")


@app.command()
def runs(
    experiment: Annotated[str, typer.Argument(metavar="[EXPERIMENT]", help="Of this experiment alone.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the runs that there were, the newest first.

    With how each ended, its score, its verdict and its model version.
    """
    _look("runs", as_json, experiment, limit)


@app.command()
def models(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="A registered model: all its versions, and who moved its champion.")] = "",
    as_json: AsJson = False,
) -> None:
    """List the registered models.

    With their aliases and scores; with a NAME, the audit of its champion.
    """
    _look("models", as_json, name)


@app.command()
def lineage(
    version: Annotated[str, typer.Argument(metavar="NAME@ALIAS", help="A version: NAME@ALIAS, NAME/VERSION or models:/...")],
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it too, as .svg, .png or .pdf.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell where a model version comes from.

    Data, pretraining, split, fine-tuning, evaluation, gate, and who promoted it when, on which evidence.
    """
    _look("lineage", as_json, version, picture)


@app.command()
def compare(
    names: Annotated[list[str], typer.Argument(metavar="RUN RUN...", help="Runs as `warmstart runs` lists them, or NAME/VERSION or NAME@ALIAS of what they registered.")],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with curves and pictures too, one file with everything inside.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs with the first of them.

    Parameters that differ, scores with intervals, and where the test rows are the same the paired difference.
    """
    _look("compare", as_json, names, html)


def _look(command: str, as_json: bool, *arguments: Any) -> None:
    """Prints as JSON, or shows, what the function of flows.looking_back of that name finds."""
    with _standard_output(as_json) as output:
        from flows import looking_back

        found, show = getattr(looking_back, command)(*arguments)
        if as_json:
            print(json.dumps(found, indent=2, allow_nan=False), file=output)
        else:
            show()


@app.command()
def show(
    kind: Annotated[str, typer.Argument(metavar="{sources|modalities|backbones|objectives|heads|methods}")],
    name: Annotated[str, typer.Argument(metavar="[NAME]")] = "",
) -> None:
    """List what a recipe can choose from.

    With a NAME, its options.
    """
    from flows.catalogue import show as describe

    typer.echo(describe(kind, name))


service_commands.add(app)


@contextmanager
def _standard_output(reserved: bool) -> Iterator[object]:
    """Where results are printed. Reserved, everything else that writes to standard output goes to standard error."""
    if not reserved:
        yield sys.stdout
        return
    sys.stdout.flush()
    with os.fdopen(os.dup(1), "w") as output:
        os.dup2(2, 1)
        try:
            yield output
        finally:
            sys.stdout.flush()
            output.flush()
            os.dup2(output.fileno(), 1)


def command() -> None:
    """The process `warmstart`: `main`, then out without the second that Python takes to tear torch, MLflow and Prefect down."""
    code: Any = 1

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # before all others, so that it runs after them
    try:
        main()
    except SystemExit as ended:
        code = ended.code


def main() -> None:
    """Runs the command. Exit codes: 0 done, 2 bad input or recipe, 130 interrupted, 1 anything else."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to fail
    try:
        code = app(standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C
            print("interrupted", file=sys.stderr)
    except Exception as error:
        from flows.errors import explain

        message, code = explain(error)
        print(message, file=sys.stderr)
    sys.exit(code or 0)
