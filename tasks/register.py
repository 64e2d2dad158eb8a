"""The model in the registry: judged against the champion on the same rows, stored, checked, and promoted if it passed."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from dataclasses import replace
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from prefect import task
from prefect.cache_policies import NO_CACHE

from ml import gate, onnx_graph
from ml.checkpoint import write_atomically
from ml.contracts import InputError
from ml.device import device_of
from ml.predictor import Predictor, frame_of, is_text
from ml.recipe import Recipe
from ml.store import Store
from tasks.evaluate import exported, read_scores
from tasks.references import BackboneRef, DatasetRef, ModelRef, RegisteredModel, ReportRef, SplitsRef
from tasks.split import read_split
from tasks.stage import TASK, Run, dump
from tasks.tracking import registry
from tasks.tracking.artifacts import fetch
from tasks.tracking.stages import StageRun
from tasks.tracking.versions import scored, signature

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = 8  # items on which the stored version must agree with the training code
TOLERANCE = 1e-4
COMPARED = 256  # test rows on which an exported graph must agree with torch
TIMED = 64  # items that the time of a row is measured on
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pydantic", "safetensors", "torch", "torchvision")


class ParityError(RuntimeError):
    """The stored version does not say what the training code says; it was not offered."""


@task(name="register", cache_policy=NO_CACHE, **TASK)
def register(
    dataset: DatasetRef, backbone: BackboneRef, splits: SplitsRef, model: ModelRef, evaluation: ReportRef, recipe: Recipe, run: Run
) -> RegisteredModel:
    """Registers the version; the alias `champion` moves to it where the gate passes, `challenger` names it otherwise."""
    name = recipe.registration.model or recipe.name
    options = {"model": name, "seed": recipe.seed, "gate": dump(recipe.registration.gate)} | _graphs(recipe)
    inputs = {"model": model.digest, "evaluation": evaluation.digest, "backbone": backbone.digest}

    def body(stage: StageRun) -> dict:
        folder = fetch(model.stage.run_id, "model")
        if recipe.registration.onnx:
            rows = Store.open(Path(dataset.path)).rows(read_split(splits).test[:COMPARED])
            folder = _exported(stage, folder, rows, recipe.registration.int8)
        judged = _judge(stage, name, folder, dataset, splits, evaluation, recipe)
        raw = _raw(recipe, Store.open(Path(dataset.path)), read_split(splits).test[:GOLDEN])
        frame = frame_of(raw, recipe.data.modality.chosen)
        expected = Predictor.load(folder).predict(raw)
        made = registry.register(
            name,
            run_id=stage.run_id,
            key=_key(model.digest, recipe),
            model_folder=folder,
            pyfunc_file=ROOT / "tasks" / "pyfunc_model.py",
            code_paths=[ROOT / "ml"],
            signature=signature(frame.columns, recipe.data.modality.chosen.column_type, expected),
            example=frame[:2],
            pip_requirements=[f"{package}=={installed(package)}" for package in _requirements(recipe)],
            tags={"warmstart.dataset": dataset.digest, "warmstart.evaluation": evaluation.stage.run_id, "warmstart.passed": str(judged["passed"]).lower()}
            | {f"warmstart.{name}": f"opset {opset}" for name, opset in _graphs(recipe).items()},
            check=lambda uri: _check_parity(uri, frame, expected),
        )
        if backbone.seen:
            register_backbone(backbone, recipe)
        if judged["passed"]:
            made = registry.promote(name, made.version, judged["champion"], {"run": run.tracked.run_id, "verdict": judged["reasons"]})
        stage.log_metrics({"passed": float(judged["passed"])})
        return {"version": made.version, "uri": made.uri, "passed": judged["passed"], "reasons": judged["reasons"]}

    def verify(output: dict) -> str | None:
        try:
            registry.version(name, output["version"])
        except Exception:
            return f"version {output['version']} of {name} is no longer registered"
        return None

    modules = ["ml.gate", "ml.onnx_graph", "ml.onnx_quantise", "ml.predictor", "tasks.register", "tasks.pyfunc_model", recipe.finetuning.head.chosen.__module__]
    summary, output = run.stage("register", body, options=options, inputs=inputs, modules=modules, verify=verify)
    aliases = registry.version(name, output["version"]).aliases
    return RegisteredModel(summary, name, str(output["version"]), output["uri"], tuple(aliases), output["passed"], tuple(output["reasons"]))


def register_backbone(backbone: BackboneRef, recipe: Recipe) -> str:
    """The URI of the version of NAME-backbone that holds what was pretrained."""
    name = f"{recipe.registration.model or recipe.name}-backbone"
    return registry.register_backbone(name, run_id=backbone.stage.run_id, key=backbone.digest).uri


def _graphs(recipe: Recipe) -> dict[str, int]:
    """The graphs beside the model, each with the version of its operators."""
    return {name: onnx_graph.OPSET for name in onnx_graph.GRAPHS if getattr(recipe.registration, name)}


def _key(digest: str, recipe: Recipe) -> str:
    """Of the version: the model's, or where graphs stand beside it one of all."""
    graphs = " ".join(f"{name} {opset}" for name, opset in _graphs(recipe).items())
    return hashlib.sha256(f"{digest} {graphs}".encode()).hexdigest() if graphs else digest


def _exported(stage: StageRun, folder: Path, rows: dict[str, Any], int8: bool) -> Path:
    """A copy of the model's folder with its graph, which says of the rows what torch says."""
    copy = exported(stage, folder, int8)
    predictor = Predictor.load(copy)
    with onnx_graph.Graph(copy, torch.get_num_threads()) as graph:
        told, found = (predictor.model.head.frame(one.answers(rows)) for one in (predictor, replace(predictor, graph=graph)))
    gap = _gap(found, told)
    stage.log_metrics({"onnx/largest_difference": gap})
    if not gap <= TOLERANCE:
        raise ParityError(f"the exported graph differs by {gap:.2g} from torch on {len(told)} test rows; nothing is registered. Set registration.onnx=false")
    return copy


def _judge(stage: StageRun, name: str, folder: Path, dataset: DatasetRef, splits: SplitsRef, evaluation: ReportRef, recipe: Recipe) -> dict:
    """The verdict, with the version of the champion that it was made against; made once, also where this stage is resumed."""
    kept = stage.workdir / "judged.json"
    if not kept.exists():
        store, rows = Store.open(Path(dataset.path)), read_split(splits)
        device = device_of(recipe.compute)
        challenger, rival = Predictor.load(folder, device), registry.champion(name)
        champion = Predictor.load(registry.files(rival) / "artifacts" / "model", device) if rival else None
        seconds = _seconds([one for one in (challenger, champion) if one], _raw(recipe, store, rows.test[:TIMED]))
        head, truth = challenger.model.head, store.rows(rows.test)
        verdict = gate.verdict(
            truth["label"],
            gate.Candidate(read_scores(evaluation), seconds[0]),
            gate.Candidate(head.scores(_answers(champion, challenger, name, store, rows.test, recipe), truth), seconds[1]) if champion else None,
            head.scores(head.trivial_answers(store.rows(rows.train), truth), truth),
            recipe.registration.gate,
            head.metrics,
            head.primary,
            trivial=head.trivial,
            slices_N=_slices(store, rows.test),
            groups_N=store.table["group"].to_numpy()[rows.test],
            resamples=recipe.evaluation.bootstrap,
            confidence=recipe.evaluation.confidence,
            seed=recipe.seed,
        ).to_dict()
        against = f"version {rival.version}" if rival else f"no champion: {head.trivial}"
        write_atomically(kept, json.dumps({**verdict, "champion": rival.version if rival else None, "against": against}))
    stage.log_artifact(kept)
    return json.loads(kept.read_text(encoding="utf-8"))


def _answers(champion: Predictor, challenger: Predictor, name: str, store: Store, test: np.ndarray, recipe: Recipe) -> Any:
    """The champion's on the same rows: on what is stored where it reads such, else on the raw items, by its own rules."""
    head = challenger.model.head
    if type(champion.model.head) is not type(head):
        raise InputError(f"the champion of {name} is made for another purpose than this model: give another registration.model")
    if champion.reads(store.spec):
        told = champion.answers(store.rows(test))
    else:
        told, errors = champion.answers_of(_items(recipe, store, test), served=False)
        if any(errors):
            raise InputError(f"the champion of {name} cannot read {sum(map(bool, errors))} of the test items ({next(filter(None, errors))}): give another registration.model")
    return head.align(told, champion.spec.classes) if head.labels else told


def _slices(store: Store, test: np.ndarray) -> np.ndarray | None:
    named = store.table["slice"].iloc[test]
    return named.fillna("").to_numpy(str) if named.notna().any() else None


def _raw(recipe: Recipe, store: Store, rows: np.ndarray) -> list[Any]:
    """The items as a user would send them, undecoded."""
    modality = recipe.data.modality.make()
    return [modality.request(data) for data in _items(recipe, store, rows)]


def _items(recipe: Recipe, store: Store, rows: np.ndarray) -> list[bytes]:
    """The items as the source reads them."""
    keys = store.table["key"].iloc[rows].tolist()
    items = list(recipe.data.source.make().read(keys))
    for key, item in zip(keys, items, strict=True):
        if item.data is None:
            raise InputError(f"the test item {key!r} can no longer be read ({item.reason}): run again with --from preprocess")
    return [item.data for item in items]


def _seconds(predictors: list[Predictor], raw: list[Any]) -> list[float]:
    """Median seconds for a row, decoding included, measured in turns."""
    taken: list[list[float]] = [[] for _ in predictors]
    for repeat in range(4):
        for number, predictor in enumerate(predictors):
            began = time.perf_counter()
            predictor.predict(raw)
            if repeat:  # the first one warms up
                taken[number].append((time.perf_counter() - began) / len(raw))
    return [statistics.median(times) for times in taken]


def _check_parity(uri: str, frame: pd.DataFrame, expected: pd.DataFrame) -> None:
    gap = _gap(scored(uri, frame), expected.drop(columns="error"))
    if not gap <= TOLERANCE:
        raise ParityError(f"{uri} differs by {gap:.2g} from the training code on {len(frame)} golden items; it is not offered")


def _gap(found: pd.DataFrame, told: pd.DataFrame) -> float:
    """The largest difference of two numbers that are told; infinite where texts, such as labels, differ."""
    texts = [name for name in told if is_text(told[name].dtype)]
    if any(list(found[name]) != list(told[name]) for name in texts):
        return math.inf
    numbers = told.columns.drop(texts)
    return float(np.abs(_numbers(found[numbers]) - _numbers(told[numbers])).max(initial=0.0))


def _numbers(frame: pd.DataFrame) -> np.ndarray:
    """(N, S) the numbers of each row, those of lists one by one."""
    return np.concatenate([np.zeros((len(frame), 0)), *(np.array(frame[name].tolist(), float).reshape(len(frame), -1) for name in frame)], axis=1)


def _requirements(recipe: Recipe) -> list[str]:
    return [*REQUIREMENTS, *recipe.data.modality.chosen.requires, *getattr(recipe.backbone.chosen, "requires", ())]
