"""A mirror in a DuckDB file, or in memory."""
