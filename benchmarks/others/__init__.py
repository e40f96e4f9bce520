"""Programs that are measured side by side: each runs by the Python of its own environment."""
