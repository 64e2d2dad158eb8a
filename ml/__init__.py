"""The library: pure functions and modules that know neither Prefect nor MLflow."""
