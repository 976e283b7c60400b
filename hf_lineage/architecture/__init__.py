"""What the tensors of a checkpoint are, and what lines up with what, told from names and shapes."""
