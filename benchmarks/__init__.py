"""How fast it is on this machine. Compare figures of one run, not of two machines."""
