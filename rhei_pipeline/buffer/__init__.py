"""Changes kept on disk between a source and its mirrors."""
