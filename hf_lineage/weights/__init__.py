"""Evidence from the weights alone: moments, hidden units, the independence test."""
