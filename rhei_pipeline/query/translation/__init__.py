"""Translates a source's query for the mirror with an equal answer, or says why it cannot."""
