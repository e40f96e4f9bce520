"""Engines on other machines that read what a mirror has published."""
