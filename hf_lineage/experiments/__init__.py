"""Families of small networks with a known truth, and the programs that fit and measure on them."""
