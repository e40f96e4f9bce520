"""Queries: which side answers, in which words, with which result."""
