"""The language models that DVP was written for, each in one file like gpt2.py."""
