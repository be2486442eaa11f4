"""The stages' runs in MLflow."""
