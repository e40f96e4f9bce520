"""What may be used: connections, none of which is open until a step opens it."""
