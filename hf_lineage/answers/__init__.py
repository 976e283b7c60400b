"""The frozen answers of every task, and the references they are made of. Nothing here fetches or computes."""
