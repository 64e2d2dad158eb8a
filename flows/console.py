"""What the command line shows: a bar for each stage on standard error, and tables of results."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console as Rich
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ml import progress
from ml.metrics import LOWER_IS_BETTER

QUIET_SECONDS = 15.0  # between two lines of progress where there is no terminal


class Console:
    """Listens to progress while work runs, and prints results when it is over."""

    def __init__(self) -> None:
        self._errors = Rich(file=sys.stderr)
        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._live: Progress | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Shows progress while the block runs."""
        progress.listen(self)
        try:
            if not self._errors.is_terminal:
                yield
                return
            columns = (
                TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"), TimeRemainingColumn(),
            )  # fmt: skip
            with Progress(*columns, console=self._errors) as self._live:
                yield
        finally:
            self._live = None
            progress.listen(None)

    def update(self, stage: str, done: int, total: int, facts: dict[str, float]) -> None:
        words = "  ".join(_fact(name, value) for name, value in facts.items())
        with self._lock:
            if self._live is not None:
                if stage not in self._bars:
                    self._bars[stage] = self._live.add_task(stage, total=total, facts="")
                self._live.update(self._bars[stage], completed=done, total=total, facts=words)
            elif time.monotonic() - self._said.get(stage, 0.0) >= QUIET_SECONDS or stage not in self._said:
                self._said[stage] = time.monotonic()
                self._errors.print(Text(f"{stage}: {done:,} of {total:,}  {words}".rstrip()), soft_wrap=True)

    def finish(self, stage: str, words: str) -> None:
        with self._lock:
            if self._live is not None and stage in self._bars:
                self._live.remove_task(self._bars.pop(stage))
            self._errors.print(Text.assemble((f"{stage:<10} ", "bold"), words), soft_wrap=True)

    def warn(self, stage: str, words: str) -> None:
        with self._lock:
            self._errors.print(Text(f"warning: {stage} {words}", style="yellow"), soft_wrap=True)

    def show_result(self, result: dict[str, Any]) -> None:
        """The table of a pipeline run: each metric with its interval for each arm, the verdict, where to look."""
        out = Rich()
        arms = {"pretrained": result["metrics"], "from scratch": result["baseline"], "classical": result["classical"]}
        arms = {name: metrics for name, metrics in arms.items() if metrics}
        rows = max((one["n"] for one in result["metrics"].values()), default=0)
        table = Table(
            title=f"{result['experiment']}: scores on {rows:,} test rows, with intervals", box=SIMPLE_HEAD, show_edge=False, padding=0
        )
        table.add_column("metric")
        for name in arms:
            table.add_column(name, justify="right")
        for metric in result["metrics"]:
            table.add_row(named(metric), *(estimate(metric, metrics.get(metric)) for metrics in arms.values()))
        out.print(table)
        out.print(Text("scores in percent; lower is better where ↓ stands", style="dim"))
        for line in result["conclusions"]:
            out.print(Text(f"• {line}"), soft_wrap=True)
        verdict, model = result["verdict"], result["model"]
        out.print(
            Text("gate: passed" if verdict["passed"] else "gate: not passed", style="bold green" if verdict["passed"] else "bold red")
        )
        for reason in verdict["reasons"]:
            out.print(Text(f"  {reason}"), soft_wrap=True)
        aliases = f" ({', '.join(model['aliases'])})" if model["aliases"] else ""
        rows = {"model": f"{model['uri']}{aliases}", "report": result["report"], "compare": result["look"]}
        for name, value in rows.items():
            out.print(Text(f"{name:<8} {value}"), soft_wrap=True)

    def show_pretraining(self, result: dict[str, Any]) -> None:
        """Where the backbone is."""
        Rich().print(Text(f"backbone {result['backbone']}"), soft_wrap=True)

    def show_prediction(self, summary: dict[str, Any]) -> None:
        """How many items were scored, and where the result lies."""
        out = Rich()
        out.print(
            Text(f"{summary['scored']:,} of {summary['rows']:,} items scored, {summary['failed']:,} with a reason in the column `error`")
        )
        out.print(Text(f"{summary['output']}"), soft_wrap=True)

    def show_check(self, found: dict[str, Any]) -> None:
        """What `warmstart check` found: facts, then warnings."""
        out = Rich()
        table = Table(title="data", show_header=False)
        for name, value in found["data"].items():
            table.add_row(name, Text(_plain(value)))
        out.print(table)
        table = Table(title="expected cost on this machine", show_header=False)
        for name, value in found["expected"].items():
            table.add_row(name, Text(_plain(value)))
        out.print(table)
        for line in found["warnings"]:
            out.print(Text(f"warning: {line}", style="yellow"), soft_wrap=True)
        out.print(Text("the recipe and its data can be used", style="green"))

    def show_services(self, found: dict[str, Any]) -> None:
        """Each service of `warmstart up`, and where people and programs find them."""
        out = Rich()
        if not found["services"]:
            out.print("no services run here: `warmstart up` starts them")
            return
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
        for column in ("service", "state", "up"):
            table.add_column(column)
        for name, one in found["services"].items():
            words, style = ("ready", "green") if one["ready"] else (one["state"].lower(), "red" if one["state"] != "RUNNING" else "yellow")
            since = _elapsed(time.time() - one["since"]) if one["since"] and one["state"] == "RUNNING" else ""
            table.add_row(name, Text(words, style=style), since)
        out.print(table)
        places = {"MLflow": found["mlflow"], "Prefect": found["prefect"], "records": found["database"], "logs": f"{found['folder']}/*.log"}
        if "user" in found:
            places["login"] = f"MLflow as {found['user']} with {found['passwords']}/admin-password; Prefect with warmstart:PASSWORD of prefect-password"
        for name, value in places.items():
            out.print(Text(f"{name:<8} {value}"), soft_wrap=True)


def _elapsed(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{int(seconds)} s" if minutes < 2 else f"{minutes} min" if minutes < 120 else f"{minutes // 60} h" if minutes < 2880 else f"{minutes // 1440} d"


def _fact(name: str, value: float) -> str:
    if name == "rows_per_second":
        return f"{value:,.0f} rows/s"
    return f"{name} {value:.4g}"


def named(metric: str) -> str:
    """A metric's name, marked where less is better."""
    words = metric.removeprefix("expected_").replace("_", " ").replace("calibration error", "calibration")
    return f"{words} ↓" if metric in LOWER_IS_BETTER else words


def estimate(metric: str, one: dict[str, Any] | None) -> str:
    """A value with its interval, short enough for three of them in 80 columns."""
    if one is None:
        return ""
    if one["value"] is None:
        return "undefined"

    def short(value: float) -> str:
        return f"{value:.3f}" if metric in LOWER_IS_BETTER else f"{100 * value:.1f}".replace("100.0", "100")

    if one["low"] is None or one["high"] is None:
        return short(one["value"])
    return f"{short(one['value'])} [{short(one['low'])}, {short(one['high'])}]"


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return (
        f"{value:,.4g}"
        if isinstance(value, float)
        else f"{value:,}"
        if isinstance(value, int) and not isinstance(value, bool)
        else str(value)
    )
