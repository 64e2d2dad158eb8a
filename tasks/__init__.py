"""The stages: each a thin Prefect task around pure functions of ml/."""
