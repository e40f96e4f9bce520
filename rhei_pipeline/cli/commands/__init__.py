"""The commands, one module for each group that the help shows."""
