"""The commands that start, use and end the servers of a folder: up, deploy, status, down."""

from __future__ import annotations

import json
import shlex
from typing import Annotated

import typer

from flows.arguments import AsJson, Overrides, RecipePath


def add(app: typer.Typer) -> None:
    """Gives the command line these commands."""
    for command in (up, deploy, status, down):
        app.command()(command)


def up(
    host: Annotated[str, typer.Option(help="Address that MLflow and Prefect listen on; one beyond loopback asks for passwords, which are made.")] = "127.0.0.1",
    mlflow_port: Annotated[int, typer.Option(min=0, max=65535, help="Of MLflow; 5000 or a free one unless given.")] = 0,
    prefect_port: Annotated[int, typer.Option(min=0, max=65535, help="Of Prefect; 4200 or a free one unless given.")] = 0,
    database: Annotated[str, typer.Option(envvar="WARMSTART_DATABASE", help="URL of MLflow's database; unset, a private PostgreSQL, or the folder's mlflow.db where there is one.")] = "",
    prefect_database: Annotated[str, typer.Option(envvar="WARMSTART_PREFECT_DATABASE", help="URL of Prefect's, postgresql+asyncpg://...; unset, the private PostgreSQL.")] = "",
    artifacts: Annotated[str, typer.Option(help="Folder or bucket URL of the artifacts, which MLflow's server serves.")] = "mlartifacts",
    auth: Annotated[bool, typer.Option("--auth", help="Ask for passwords on loopback too.")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A further name that they are called by, such as that of a proxy or an address; again for more.")] = None,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="Flow runs that the worker runs at once.")] = 1,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in the foreground, for systemd and containers.")] = False,
) -> None:
    """Start MLflow, Prefect and a worker.

    With a private PostgreSQL, in one supervised group; all commands in this folder use them until `warmstart down`.
    """
    from flows.console import Console
    from mlflow_server import services

    wanted = services.Wanted(host, mlflow_port, prefect_port, database, prefect_database, artifacts, auth, runs, allow_host or [])
    Console().show_services(services.up(wanted, _say, foreground))


def deploy(
    recipe: RecipePath,
    overrides: Overrides = None,
    cron: Annotated[str, typer.Option(help='Run the pipeline by cron\'s five fields, such as "0 3 * * 1": Mondays at 3.')] = "",
    timezone: Annotated[str, typer.Option(help="In which --cron is read, such as Europe/Berlin.")] = "UTC",
    interval: Annotated[float, typer.Option(min=0, help="Or every so many seconds.")] = 0,
    watch: Annotated[str, typer.Option(metavar="CRON", help="When to look for drift and new data, which retrain: five fields of cron too.")] = "",
    pool: Annotated[str, typer.Option(help="The work pool whose workers run it.")] = "warmstart",
    timeout: Annotated[float, typer.Option(min=0, help="Seconds after which a run is cancelled; 0: never.")] = 0,
    notify: Annotated[str, typer.Option(help="A block of Prefect that is told of failures, as KIND/NAME: webhook/team, slack-webhook/team.")] = "",
    paused: Annotated[bool, typer.Option("--paused", help="Schedule nothing until it is resumed in Prefect's UI.")] = False,
) -> None:
    """Deploy a recipe's flows on Prefect.

    The pipeline, by schedule where one is given; pretraining alone, fine-tuning from the registered backbone, scoring, promotion and rollback.
    """
    from flows.deploy import Schedule, schedulable
    from flows.deploy import deploy as make
    from ml.recipe import load

    schedulable()
    for name in make(load(recipe, overrides or []), pool, Schedule(cron, timezone, interval), Schedule(watch, timezone), timeout, notify, paused):
        typer.echo(f"prefect deployment run '{name}'")


def down() -> None:
    """End what `warmstart up` started."""
    from mlflow_server import services

    typer.echo("all services have ended" if services.down(_say) else "no services run here")


def status(as_json: AsJson = False, env: Annotated[bool, typer.Option("--env", help='Print what other programs need: eval "$(warmstart status --env)".')] = False) -> None:
    """Show the services of this folder.

    Exit code 0 when all answer, 3 when not.
    """
    from mlflow_server import in_use, services

    if env:
        found = in_use.read()
        for name, value in found["clients"].items() if found and not found.get("down") else ():
            typer.echo(f"export {name}={shlex.quote(value)}")
        return
    found = services.status()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        from flows.console import Console

        Console().show_services(found)
    raise typer.Exit(0 if found["ready"] else 3)


def _say(words: str) -> None:
    typer.echo(words, err=True)
