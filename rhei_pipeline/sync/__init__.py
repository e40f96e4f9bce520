"""The way of the data: copied, captured, applied, recorded, compared."""
