"""Capture from PostgreSQL by triggers into logs in the same database."""
