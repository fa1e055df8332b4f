"""What may stand in config.yaml, and how it is read: a file for each room's part of it."""
