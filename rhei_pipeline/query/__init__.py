"""Queries: which side answers, the translated statement, and the answer's form."""
