"""The only code that knows MLflow and DVC's internals: tracking, lineage, promotion."""
