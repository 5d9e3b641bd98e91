"""The services process: the store, and what lives in it, beside the coordinator and out of its way."""
