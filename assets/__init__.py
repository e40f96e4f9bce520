"""What exists: source tables, their changes, first copies, mirrors, snapshots, and their checks."""
