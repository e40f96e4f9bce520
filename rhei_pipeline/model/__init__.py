"""Values that everything else speaks in: schemas, changes, progress, reports."""
