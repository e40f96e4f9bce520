"""Capture from PostgreSQL: from its log, by triggers, and by polling."""
