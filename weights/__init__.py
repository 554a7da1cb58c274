"""Weight files and tokenizers, read by hand and safely, and fetched from where they are public."""
