"""Would this image boot, would it enforce, and why: nothing is run."""
