"""A source's query as the mirror's, such that both answer alike, or the reason why not."""
