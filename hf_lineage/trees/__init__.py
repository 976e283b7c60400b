"""A set of models → a directed phylogeny: what each pair shares, who is related, the trees, their direction."""
