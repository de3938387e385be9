"""Measurements and statements for a remote verifier."""
