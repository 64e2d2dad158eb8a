"""Raw data to a train-ready store, with the test rows reserved before anything is learnt."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from ml.onnx_graph import check_exports
from ml.overview import overview
from ml.preprocess import preprocess as build_store
from ml.preprocess import summary
from ml.recipe import Recipe
from ml.store import Store
from tasks.references import DatasetRef
from tasks.stage import TASK, Run, dump
from tasks.tracking.stages import StageRun


@task(name="preprocess", cache_policy=NO_CACHE, **TASK)
def preprocess(recipe: Recipe, run: Run) -> DatasetRef:
    """Cleans the data and writes the store; its overview goes to MLflow."""
    source = recipe.data.source.make()
    options = dump(recipe.data)
    options.pop("source"), options.pop("workers")  # the fingerprint stands for the source; threads change no result

    labelled, several = recipe.finetuning.head.chosen.labels, recipe.finetuning.head.chosen.several
    options |= {"labelled": False} if not labelled else {}
    options |= {"several": True} if several else {}

    def body(stage: StageRun) -> dict:
        store = build_store(source, recipe.data.modality.make(), recipe.data, stage.workdir, run.stores, labelled, several)
        _log(stage, recipe, store)
        return {"digest": store.digest}

    def verify(output: dict) -> str | None:
        if not (run.stores / output["digest"]).is_dir():
            return "its store is not on this machine"
        Store.open(run.stores / output["digest"])
        return None

    modules = ["ml.preprocess", recipe.data.source.chosen.__module__, recipe.data.modality.chosen.__module__]
    summary, output = run.stage("preprocess", body, options=options, inputs={"source": source.fingerprint()}, modules=modules, verify=verify)
    if recipe.registration.onnx:  # before anything is trained for it
        check_exports(recipe.backbone, recipe.finetuning.head, Store.open(run.stores / output["digest"]).spec)
    return DatasetRef(summary, output["digest"], str(run.stores / output["digest"]))


def _log(stage: StageRun, recipe: Recipe, store: Store) -> None:
    facts = summary(store)
    stage.log_json(facts, "data.json")
    stage.log_metrics({f"data/{name}": float(value) for name, value in facts.items() if isinstance(value, int | float)})
    stage.log_input(recipe.name, store.digest, "preprocess", len(store.table))
    for name in ("quarantine.parquet", "manifest.json"):
        stage.log_artifact(store.path / name, "store")
    modality = recipe.data.modality.make()
    for name, text in modality.artifacts(store.spec).items():
        stage.log_text(text, name)
    for name, figure in overview(store, modality).items():
        stage.log_figure(figure, f"pictures/{name}.png")
