"""Sampling by a vLLM server, which lives in an environment of its own: tokens in and tokens out over HTTP."""
