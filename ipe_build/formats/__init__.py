"""Bytes to frozen values and back. No files, processes or keys here; `c_NAME.py` modules hold only C text for dissect.cstruct."""
