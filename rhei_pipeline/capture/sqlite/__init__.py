"""Capture from SQLite: by triggers, and by polling."""
