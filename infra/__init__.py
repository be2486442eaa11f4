"""What runs the pipeline: servers, launchers, settings, and the example's files."""
