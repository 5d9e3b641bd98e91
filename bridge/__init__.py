"""The bridge: the wire between processes (`protocol`, `transport`) and the worker at its far end."""
