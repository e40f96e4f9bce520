"""SQLite: its catalogue, its values, and two ways to capture its changes."""
