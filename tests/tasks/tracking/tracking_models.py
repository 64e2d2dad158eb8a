"""The smallest registered model: a folder with one number, served by a models-from-code file."""

from pathlib import Path

import pandas as pd

from tasks.tracking import registry

CODE = '''
import json, mlflow
from pathlib import Path
class Times(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.factor = json.loads((Path(context.artifacts["model"]) / "model.json").read_text())["factor"]
    def predict(self, context, model_input, params=None):
        return model_input["x"] * self.factor
mlflow.models.set_model(Times())
'''


def register_tiny(name: str, run_id: str, key: str, folder: Path, **options) -> registry.Version:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    folder.mkdir(exist_ok=True)
    (folder / "model.json").write_text('{"factor": 3.0}')
    code = folder.with_name("tiny_pyfunc.py")
    code.write_text(CODE)
    return registry.register(
        name,
        run_id=run_id,
        key=key,
        model_folder=folder,
        pyfunc_file=code,
        code_paths=[],
        signature=ModelSignature(Schema([ColSpec("double", "x")]), Schema([ColSpec("double")])),
        example=pd.DataFrame({"x": [1.0, 2.0]}),
        pip_requirements=["mlflow"],
        tags={"seed": "0"},
        **options,
    )
