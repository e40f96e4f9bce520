"""The declaration: what is mirrored, from where, to where, and how."""
