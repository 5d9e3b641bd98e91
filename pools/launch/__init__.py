"""How a worker process comes to life and dies."""
