"""Plain values that all packages share: schemas, changes, progress, reports."""
