"""Everything that opens a model: the Hub's client, safetensors headers, lazy checkpoints."""
