"""The server process, which syncs and answers: Flight SQL, metrics, health."""
