"""What users import: `Client` and `AsyncClient`, two faces of one core."""
