"""Signature texts: read by `parser`, written by the model with `literals` and `prefix`."""
