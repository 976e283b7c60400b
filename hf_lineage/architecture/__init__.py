"""What the tensors of a model are, and how two models are aligned, from names and shapes alone."""
