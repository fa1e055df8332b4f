"""The proxy itself. The way of one request is the reading order: docs/architecture.md."""
