"""Keep an analytical mirror of an operational database by change data capture."""
