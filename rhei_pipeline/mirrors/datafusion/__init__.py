"""A mirror in files that DataFusion reads: immutable segments under one manifest."""
