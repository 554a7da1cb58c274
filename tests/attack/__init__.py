"""Attacks: files, commands and moments as bad as they come. See __main__.py."""
