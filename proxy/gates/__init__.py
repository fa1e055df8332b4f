"""What may refuse a call or answer it early; one gate a file."""
