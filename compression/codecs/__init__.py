"""Codecs: tensors to bytes and back, at the wire."""
