"""The mirrors; each folder holds one engine."""
