"""Faces: bytes to checked pixels, and the store of labelled ones."""
