"""A process that syncs and answers: Flight SQL, metrics, health."""
