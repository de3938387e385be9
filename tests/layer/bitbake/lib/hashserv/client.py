"""`bb.siggen` imports this name and uses nothing of it."""
