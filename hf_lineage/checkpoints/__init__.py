"""Opening a model, local or remote: lazy tensors, claims, references. Looking costs the headers."""
