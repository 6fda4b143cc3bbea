"""Using a net: predictions, heat maps, folding, conversion, export."""
