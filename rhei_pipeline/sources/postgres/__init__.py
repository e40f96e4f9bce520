"""PostgreSQL: its catalogue, its values, and three ways to capture its changes."""
