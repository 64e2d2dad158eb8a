"""MLflow's scoring protocol: what `mlflow models serve` takes at /invocations, read by MLflow's own functions, and what it answers.

https://mlflow.org/docs/latest/ml/deployment/deploy-model-locally/: JSON with one of dataframe_split, dataframe_records, instances and inputs, or CSV.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any

import pandas as pd

from ml.contracts import InputError
from tasks.tracking.database import first_line

if TYPE_CHECKING:
    from mlflow.types import Schema

FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")
TYPES = ("application/json", "text/csv")


class UnknownType(InputError):
    """The request's content is of a type that is not read: HTTP 415."""


def version() -> str:
    """MLflow's own, which its servers tell."""
    from mlflow.version import VERSION

    return VERSION


def schema(columns: Sequence[str], kind: str) -> Schema:
    """Of requests with `columns` of MLflow's type `kind`; binary is base64 in JSON."""
    from mlflow.types import ColSpec, DataType, Schema

    return Schema([ColSpec(DataType[kind], name) for name in columns])


def parsed(body: bytes, content_type: str, expected: Schema) -> pd.DataFrame:
    """The frame with the expected columns that a request holds; InputError says what was found and expected."""
    from mlflow.exceptions import MlflowException
    from mlflow.models.utils import _enforce_schema as enforced
    from mlflow.pyfunc.scoring_server import infer_and_parse_data, parse_csv_input

    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    if kind not in TYPES or any(one not in ("charset=utf-8", 'charset="utf-8"') for one in parameters):
        raise UnknownType(f"found the content type {content_type[:100]!r}; expected {' or '.join(TYPES)} in UTF-8")
    wanted = f"expected the column{'s' if len(expected) > 1 else ''} " + " and ".join(f"{one.name} ({words(one.type.name)})" for one in expected.inputs)
    try:
        text = body.decode()
        found = parse_csv_input(StringIO(text), expected) if kind == "text/csv" else infer_and_parse_data(_content(text), expected)
        return enforced(found, expected)[expected.input_names()]
    except UnicodeDecodeError:
        raise InputError("the request is not UTF-8") from None
    except InputError:
        raise
    except MlflowException as error:
        raise InputError(f"{first_line(error).rstrip('.')}; {wanted}") from None
    except Exception as error:  # MLflow's functions raise what pandas raises for what they did not foresee
        raise InputError(f"cannot be read as a table ({first_line(error, 120)}); {wanted}") from None


def words(kind: str) -> str:
    """What a column of MLflow's type holds in a request."""
    return "base64 of a file's bytes" if kind == "binary" else "text" if kind == "string" else kind


def answer(frame: pd.DataFrame) -> str:
    """The JSON that is answered: {"predictions": [one object a row]}, where nothing is null."""
    from mlflow.utils.proto_json_utils import NumpyEncoder

    rows = [{name: None if _nothing(value) else value for name, value in row.items()} for row in frame.to_dict("records")]
    return json.dumps({"predictions": rows}, cls=NumpyEncoder)


def _nothing(value: Any) -> bool:
    return value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))


def _content(text: str) -> dict:
    """What JSON holds under its one format."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request is not JSON ({first_line(error, 120)}); expected an object with one of {', '.join(FORMATS)}") from None
    given = [name for name in FORMATS if isinstance(content, dict) and name in content]
    if len(given) != 1:
        found = f"an object with {', '.join(map(repr, list(content)[:8])) or 'nothing'}"[:200] if isinstance(content, dict) else f"a {type(content).__name__}"
        raise InputError(f"found {found}; expected an object with one of {', '.join(FORMATS)}")
    return {given[0]: content[given[0]]}
