"""A log of an application's own events as the source, without a database."""
