"""ipe-build: a root filesystem in, a device image out whose kernel runs only authorised code, and the proof of it."""

__version__ = "0.1.0"
