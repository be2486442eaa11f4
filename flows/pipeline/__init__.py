"""The flow: its steps in their order, under Prefect or as plain calls."""
