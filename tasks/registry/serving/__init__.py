"""What a server of the policy asks of the registry: versions by alias, their weights, and its figures in MLflow."""
