"""A set of models → directed forest: what each pair shares, who is related, the trees, their direction."""
