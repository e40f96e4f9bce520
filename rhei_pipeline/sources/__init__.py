"""Operational databases, and how their changes are captured."""
