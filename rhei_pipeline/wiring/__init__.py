"""Where names in the settings become objects; the only room that knows every adapter."""
