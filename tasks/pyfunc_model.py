"""The registered model as MLflow loads it (models from code): weights and options come as the artifact "model".

    mlflow.pyfunc.log_model(python_model="tasks/pyfunc_model.py", artifacts={"model": FOLDER}, code_paths=["ml"], ...)

Input: a frame with the modality's columns: "image" holds bytes or base64 text, "text" and others strings. Output: what the head tells, of
classes label, probability and p_<class>, and error; for a backbone e_0 ... and error. Paths are refused, since over HTTP they would read the server's files, unless WARMSTART_ALLOW_PATHS=1.
"""

import os

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel


class WarmstartModel(PythonModel):
    """Scores rows with ml.predictor, which travels with the model."""

    def load_context(self, context):
        from ml import predictor

        self.predictor, self.values_of = predictor.load(context.artifacts["model"]), predictor.values_of

    def predict(self, context, model_input: pd.DataFrame, params=None):
        """One row of output for each row of the frame `model_input`."""
        files = os.environ.get("WARMSTART_ALLOW_PATHS") == "1"
        frame = self.predictor.predict(self.values_of(model_input, self.predictor.modality), files=files)
        # A row without numbers leaves as null: JSON has no NaN.
        return frame.astype(object).where(frame.notna(), None) if frame["error"].notna().any() else frame


mlflow.models.set_model(WarmstartModel())
