"""MLflow's tracking server with settings that are safe to start with: `python -m mlflow_server --help`."""
