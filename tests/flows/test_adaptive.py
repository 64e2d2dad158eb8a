"""`finetuning.method=adaptive`: each rung is a run to compare, and the best by validation goes on."""

import re

from mlflow import MlflowClient

RUNGS = ["linear-probe", "lora", "layer-decay", "gradual-unfreezing"]
LADDER = ["name=ladder", "finetuning.method=adaptive", "finetuning.fit.epochs=4", "finetuning.baseline=false", "finetuning.classical=false"]


def test_a_ladder_keeps_the_best_rung(finished, warmstart, tiny):
    result = warmstart(finished.folder, "run", tiny, "--json", *LADDER).result
    stages = {stage["name"]: stage for stage in result["stages"]}
    tried = {rung: stages[f"finetune-{rung}"] for rung in RUNGS}
    scores = {rung: float(score) for rung, score in re.findall(r"([a-z-]+) (\d\.\d+)", stages["finetune"]["why"].split(": ", 1)[1])}
    assert set(scores) == set(RUNGS)
    chosen = next(rung for rung, stage in tried.items() if stage["run_id"] == stages["finetune"]["run_id"])
    assert scores[chosen] == max(scores.values())
    client = MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")
    runs = [client.get_run(stages[f"finetune-{rung}"]["run_id"]) for rung in RUNGS]
    assert all(run.info.status == "FINISHED" and "best/score" in run.data.metrics for run in runs)
    assert {run.data.params["epochs_done"] for run in runs} == {"2"}, "each has its share of twice the length"
    rates = [float(run.data.params["finetuning.fit.learning_rate"]) for run in runs]
    assert rates[0] == 3 * rates[1] == 3 * rates[2]


def test_rungs_that_do_not_suit_are_left_out(finished, warmstart, tiny):
    """A change of rank 500 is larger than any weight of the small network."""
    ladder = "finetuning.method={name: adaptive, options: {rungs: [{name: full}, {name: lora, options: {rank: 500}}]}}"
    result = warmstart(finished.folder, "run", tiny, "--json", *LADDER[2:], "name=rungs", ladder).result
    assert [stage["name"] for stage in result["stages"] if stage["name"].startswith("finetune")] == ["finetune-full", "finetune"]


def test_a_ladder_of_unknown_methods_is_refused(finished, warmstart, tiny):
    ladder = "finetuning.method={name: adaptive, options: {rungs: [{name: fulll}]}}"
    done = warmstart(finished.folder, "run", tiny, ladder)
    assert done.code == 2 and "unknown method 'fulll'" in done.err and "Did you mean 'full'?" in done.err
