"""The flow on a Prefect server: by the clock on this machine, or on work pools anywhere."""
