"""Capture from SQLite by triggers into logs in the same file."""
