"""What may be used: thin factories of connections. Nothing is open until a step opens it."""
