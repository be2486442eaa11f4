"""The Prefect server: its address, one of our own, and the deployments and runs on it."""
