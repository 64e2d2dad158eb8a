"""Raw data to a train-ready store, with the test rows reserved before anything is learnt."""

from __future__ import annotations

import shutil
from functools import partial

from prefect import task
from prefect.cache_policies import NO_CACHE

from ml import engines, progress
from ml.contracts import InputError
from ml.onnx_graph import check_exports
from ml.overview import overview
from ml.preprocess import preprocess as build_store
from ml.preprocess import summary
from ml.recipe import Recipe
from ml.remote import Remote, StorageError
from ml.store import Store
from tasks.references import DatasetRef
from tasks.stage import TASK, Run, deferrable, dump
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
        elsewhere = engines.data(recipe.compute)
        fill = partial(elsewhere.fill, compute=recipe.compute) if elsewhere else None
        store = build_store(source, recipe.data.modality.make(), recipe.data, stage.workdir, run.stores, labelled, several, fill)
        _log(stage, recipe, store)
        return {"digest": store.digest}

    def verify(output: dict) -> str | None:
        if not (run.stores / output["digest"]).is_dir():
            problem = _fetch(output["digest"], run)
            if problem:
                return problem
        Store.open(run.stores / output["digest"])
        return None

    modules = ["ml.preprocess", recipe.data.source.chosen.__module__, recipe.data.modality.chosen.__module__]
    summary, output = run.stage("preprocess", body, options=options, inputs={"source": source.fingerprint()}, modules=modules, verify=verify)
    path = run.stores / output["digest"]
    if run.storage is not None:
        _publish(Store.open(path), run.storage)
    if recipe.registration.onnx:  # before anything is trained for it
        check_exports(recipe.backbone, recipe.finetuning.head, Store.open(path).spec)
    return DatasetRef(summary, output["digest"], str(path))


def _fetch(digest: str, run: Run) -> str | None:
    """Gets the store that another machine published; or why that could not be."""
    if run.storage is None:
        return "its store is not on this machine"
    try:
        run.storage.fetch(f"stores/{digest}", run.stores / digest)
    except StorageError as error:
        return f"its store is not on this machine, and {error}"
    try:
        found = Store.open(run.stores / digest).digest
    except InputError:
        found = "none"
    if found != digest:
        shutil.rmtree(run.stores / digest)
        return f"its store is not on this machine, and {run.storage.url}/stores/{digest} is another one"
    progress.finish("preprocess", f"store fetched from {run.storage.url}")
    return None


def _publish(store: Store, storage: Remote) -> None:
    """Copies the store to where other machines reach it, unless it is there."""
    name = f"stores/{store.digest}"
    with deferrable(storage, "preprocess"):
        if not storage.holds(name):
            store.verify()
            storage.publish(store.path, name, {file: facts["sha256"] for file, facts in store.manifest["files"].items()})
            progress.finish("preprocess", f"store copied to {storage.url}")


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
