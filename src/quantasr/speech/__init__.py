"""Everything about speech that needs no model and no PyTorch."""
