"""The frozen teacher and the store of its answers."""
