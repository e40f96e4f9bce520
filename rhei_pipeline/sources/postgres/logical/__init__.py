"""Capture from PostgreSQL's write-ahead log by logical decoding."""
