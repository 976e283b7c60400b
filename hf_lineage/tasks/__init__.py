"""The tasks, one file each, and what they share: options, comparison, verdict, calibration, notes."""
