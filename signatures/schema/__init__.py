"""JSON Schema: written by `writer`, read by `reader`; pydantic models, read by `pydantic_reader`."""
