"""SQL as text: quoting, types, and whether a statement only reads."""
