"""Creates objects from settings; the only package that knows every adapter."""
