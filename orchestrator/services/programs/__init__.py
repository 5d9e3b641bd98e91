"""Programs in the services process: versions are deployed, named, compared, and told to the coordinator."""
