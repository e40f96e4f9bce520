"""Pure functions from many change events to what a mirror applies."""
