"""Which kind of language model a file holds: its config.json says so, or its tensors' names."""

import os

from lib.files import plain_errors
from weights.public import FILES, locate
from weights.reading import read, read_config, sniff, weight_file
from weights.safetensors import header

# A kind -> how public names of it begin, and parts of tensors' names that no other kind has.
KINDS = {"gpt2": (("gpt2", "distilgpt2"), ("attn.c_attn.",)),
         "llama": (("smollm",), ("self_attn.q_proj.", "attention.wq.")),
         "bert": (("bert",), ("attention.self.query.",)),
         "t5": (("t5",), ("SelfAttention.q.",))}


def kind_of(name):
    """"gpt2", "llama", "bert" or "t5", of a file, a folder or a public name, which is not fetched.
    What shows no sign of any is "gpt2", whose reader will say what it misses."""
    if str(name) in FILES and not os.path.exists(name):
        return next((kind for kind, (names, _) in KINDS.items() if str(name).startswith(names)),
                    "gpt2")
    path = weight_file(locate(name))
    told = read_config(path.parent).get("model_type")
    if told in KINDS and path.name != "consolidated.00.pth":
        return told
    with plain_errors(path):
        kind = sniff(path)
        if kind == "gguf":  # so are all models of llama.cpp; plm/llama.py refuses the others
            return "llama"
        names = header(path)[0] if kind == "safetensors" else read(path)
    return next((kind for kind, (_, parts) in KINDS.items()
                 if any(part in name for name in names for part in parts)), "gpt2")
