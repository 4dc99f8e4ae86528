"""Tokens on disk and the loader that feeds training from them."""
