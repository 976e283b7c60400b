"""A set of models → a directed phylogeny: pair statistics, related groups, trees, their roots."""
