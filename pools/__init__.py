"""Worker pools: what makes each special, how the fleet decides (`core`), how workers come to life (`launch`)."""
