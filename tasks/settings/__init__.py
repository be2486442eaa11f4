"""params.yaml as typed settings, and the fingerprint of what a result follows from."""
