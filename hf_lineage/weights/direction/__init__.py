"""Which of two related models came first: one file an estimator, `position.py` for the record they share."""
