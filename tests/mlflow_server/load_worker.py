"""One of many runs at once on one server: a stage that reports rows; in a process of its own."""

import os
from pathlib import Path


def work(number: int, rows: int, environment: dict[str, str], folder: str) -> None:
    """A pipeline run in the experiment `load`, with one stage of `rows` rows."""
    os.environ.update(environment)
    os.chdir(folder)
    from tasks.tracking import database, runs, stages

    database.prepare()

    def body(stage) -> dict:
        for step in range(rows):
            stage.report({"loss": float(number * rows + step)}, step)
        stage.log_text(str(number), "number.txt")
        return {"number": number}

    with runs.pipeline_run("load", "name: load\n", number) as pipeline:
        stages.run_stage(pipeline, "pretrain", key=f"{number:064x}", params={"number": number}, inputs={}, workroot=Path("work") / str(number), body=body)
