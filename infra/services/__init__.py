"""Real servers on loopback for a team's first look and for tests: PostgreSQL, S3, and MLflow and Prefect on them."""
