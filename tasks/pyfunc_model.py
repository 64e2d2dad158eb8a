"""The registered model as MLflow loads it (models from code): weights and options come as the artifact "model".

    mlflow.pyfunc.log_model(python_model="tasks/pyfunc_model.py", artifacts={"model": FOLDER}, code_paths=["ml"], ...)

Input: a frame whose column is named as the modality: "image" holds bytes or base64 text, "text" strings. Output: label, probability,
p_<class>, error; for a backbone e_0 ... and error. Paths are refused, since over HTTP they would read the server's files, unless WARMSTART_ALLOW_PATHS=1.
"""

import os

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel


class WarmstartModel(PythonModel):
    """Scores rows with ml.predictor, which travels with the model."""

    def load_context(self, context):
        from ml import predictor

        self.predictor = predictor.load(context.artifacts["model"])

    def predict(self, context, model_input: pd.DataFrame, params=None):
        """One row of output for each row of the frame `model_input`."""
        files = os.environ.get("WARMSTART_ALLOW_PATHS") == "1"
        frame = self.predictor.predict(model_input[self.predictor.spec.modality].tolist(), files=files)
        # A row without numbers leaves as null: JSON has no NaN.
        return frame.astype(object).where(frame.notna(), None) if frame["error"].notna().any() else frame


mlflow.models.set_model(WarmstartModel())
