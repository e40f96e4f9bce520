"""Where the facts are written."""
