"""Families of small networks with a known truth, and what was measured on them."""
