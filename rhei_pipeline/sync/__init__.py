"""Copies tables, syncs their changes, and compares mirror and source."""
