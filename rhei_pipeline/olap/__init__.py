"""Where the mirror lives; each module holds one Mirror."""
