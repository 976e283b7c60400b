"""What the answer looks like: text, pictures."""
