"""Events: what happened is reported to people and to Prefect, and changed sources start runs."""
