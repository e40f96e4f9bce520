"""Capture from SQLite by polling timestamps."""
