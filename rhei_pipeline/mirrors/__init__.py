"""Where the mirror lives; each folder holds one engine."""
