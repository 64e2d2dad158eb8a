"""Model versions as their users see them: by a URI, with a signature, loaded as a server loads them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pandas as pd
from pandas.api.types import is_integer_dtype, is_numeric_dtype

from ml.contracts import InputError
from tasks.tracking import database, registry

if TYPE_CHECKING:
    from mlflow.models import ModelSignature


def pinned(uri: str) -> registry.Version:
    """The version that a URI with an alias, a version or `latest` names now. Raises InputError."""
    from mlflow.exceptions import MlflowException

    matched = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+|latest))", uri)
    if matched is None:
        raise InputError(f"{uri!r} is no model: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = matched.groups()
    try:
        if number == "latest":
            found = database.retry(database.client().search_model_versions, f"name = '{name}'")
            number = max((int(one.version) for one in found), default=0)
        one = registry.champion(name, alias) if alias else registry.version(name, number)
    except MlflowException:
        one = None
    if one is None:
        raise InputError(f"{uri} is not in the registry of {database.uri()}. `mlflow ui` shows what is.")
    return one


def signature(columns: Iterable[str], kind: str, output: pd.DataFrame) -> ModelSignature:
    """A signature that takes `columns` of MLflow's type `kind` (binary is base64 over HTTP) and gives what `output` is an example of."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    from ml.predictor import is_text  # torch with it, which those who only look for a version do without

    def told(name: str) -> ColSpec:
        values = output[name]
        if is_text(values.dtype):
            return ColSpec(DataType.string, name, required=False)
        if not is_numeric_dtype(values):
            return ColSpec(Array(DataType.float), name, required=False)
        return ColSpec(DataType.long if is_integer_dtype(values) else DataType.double if values.dtype == "float64" else DataType.float, name)

    return ModelSignature(Schema([ColSpec(DataType[kind], name) for name in columns]), Schema([told(name) for name in output.columns]))


def scored(uri: str, frame: pd.DataFrame) -> pd.DataFrame:
    """What the version makes of `frame`, loaded from the registry as a server loads it."""
    from mlflow.pyfunc import load_model

    return load_model(uri).predict(frame)
