"""requests transport adapters: each answers a URL scheme with a `requests.Response`."""
