"""The coordinator process: a thin shell around the fleet."""
