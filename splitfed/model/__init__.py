"""The Vision Transformer: built by timm, cut into parts, and how it is trained."""
