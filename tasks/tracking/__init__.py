"""Runs, stages, cache and registry in MLflow: the only place of the runtime that imports it. Importing sets nothing."""
