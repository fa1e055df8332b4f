"""An authority of a test's own: certificates for 127.0.0.1, as files and as contexts of `ssl`."""

from __future__ import annotations

import ssl

import trustme


class Tls:
    """`server`, `client`: contexts that suit each other. `files`: what the proxy wants in its folder."""

    def __init__(self) -> None:
        self.authority = trustme.CA()
        cert = self.authority.issue_cert("127.0.0.1")
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        cert.configure_cert(self.server)
        self.client = self.trusting()
        self.files = {
            "certificates/ca.pem": self.authority.cert_pem.bytes().decode(),
            "certificates/cert.pem": cert.cert_chain_pems[0].bytes().decode(),
            "certificates/key.pem": cert.private_key_pem.bytes().decode(),
        }

    def trusting(self) -> ssl.SSLContext:
        """A client's context of its own."""
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    def known(self) -> ssl.SSLContext:
        """A client's context that shows a certificate of the authority's."""
        context = self.trusting()
        self.authority.issue_cert("client@example.org").configure_cert(context)
        return context
