"""Who holds the mirror, and how other processes ask it: locks, socket, stepping aside."""
