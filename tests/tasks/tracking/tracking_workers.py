"""What the tests' processes do. `enter` is their main function."""

import json
import os
import time
from pathlib import Path

from tasks.tracking import database, lease, registry, runs, stages


def enter(folder, environment, crash, function, arguments):
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    if crash:
        os.environ |= {"WARMSTART_TESTING": "1", "WARMSTART_CRASH_AT": crash}
    globals()[function](*arguments)


def say(name, content):
    temporary = Path(f"{name}.tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(name)


def read(name):
    return json.loads(Path(name).read_text())


def start_runs(number):
    """A cold start: prepares the database and makes a pipeline run with a stage."""
    database.prepare()
    with runs.pipeline_run("eight", "name: eight\n") as pipeline:
        result = train(pipeline, f"key-{number}", steps=20)
    say(f"done-{number}", result.run_id)


def train(pipeline, key, steps=50, wait=0.0, stop_at=None, force=False, verify=None, **params):
    """A stage that reports `steps` losses, keeping a checkpoint, and stores a file."""

    def body(stage):
        mark = stage.workdir / "checkpoint"
        start = int(mark.read_text()) if mark.exists() else 0
        with Path(f"bodies-{key}").open("a") as file:
            file.write(f"{os.getpid()} {start}\n")
        for step in range(max(0, start - 3), steps):  # a resumed training replays what came after its checkpoint
            stage.report({"loss": 1 / (1 + step)}, step)
            if step % 10 == 9:
                mark.write_text(str(step + 1))
            if step == stop_at:
                say(f"stopped-{key}", os.getpid())
                time.sleep(600)
            time.sleep(wait)
        stage.log_text("weights " * 100, "model/weights.txt")
        stage.log_metrics({"best/loss": 1 / steps})
        return {"steps": steps}

    return stages.run_stage(
        pipeline, "pretrain", key=key, params={"steps": steps, **params}, inputs={"data": "d1"}, workroot=Path("work"), body=body, force=force, verify=verify
    )


def pipeline_of(name, key, done="", options=None):
    """One pipeline run with one stage; writes its result to the file `done`."""
    database.prepare()
    with runs.pipeline_run(name, "name: x\n") as pipeline:
        result = train(pipeline, key, **(options or {}))
    if done:
        say(done, {"run_id": result.run_id, "cached": result.cached, "why": result.why, "pipeline": pipeline.run_id})


def fast_pipeline(name, key, done, options, beat):
    """The same with a faster heartbeat."""
    lease.BEAT = beat
    pipeline_of(name, key, done, options)


def promote(name, number, expected, done):
    database.prepare()
    try:
        registry.promote(name, number, expected, {"by": number})
        say(done, True)
    except registry.Outrun:
        say(done, False)


def register(name, key, done, folder):
    from tracking_models import register_tiny

    database.prepare()
    with runs.pipeline_run("registry", "name: x\n") as pipeline:
        found = register_tiny(name, pipeline.run_id, key, Path(folder))
    registry.promote(name, found.version, None, {"passed": True})
    say(done, found.version)
