"""Signers, key backends, signature profiles, certificates, verification."""
