"""What exists: the declared tables from source to snapshot, and a team's own assets on top."""
