"""What the commands for the makers of mappings work with: explain, replay, init, connect, check --show."""
