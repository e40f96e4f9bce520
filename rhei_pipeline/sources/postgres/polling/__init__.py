"""Capture from PostgreSQL by polling timestamps."""
