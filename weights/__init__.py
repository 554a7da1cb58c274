"""Weight files and tokenizers: read by hand and safely, written, and fetched from where they are published."""
