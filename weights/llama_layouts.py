"""The three layouts in which LLaMA's weights are published, all read as if transformers wrote them.

    transformers  model.layers.0.self_attn.q_proj.weight   config.json       rotates halves
    Meta          layers.0.attention.wq.weight             params.json       rotates neighbours
    GGUF          blk.0.attn_q.weight                      in the same file  rotates neighbours

What "rotates" means is in plm/llama.py: a wrong order of the rows of queries and keys raises no
error, it gives a model that talks almost sense.
"""

import math
import os
import re

from lib.cli import UserError
from lib.files import read_json
from weights import gguf
from weights.reading import read, read_config, sniff

# transformers' names and those of Meta and GGUF. In front stand, in a layer, "layers.N" or "blk.N".
NAMES = """
embed_tokens              tok_embeddings   token_embd
input_layernorm           attention_norm   attn_norm
self_attn.q_proj          attention.wq     attn_q
self_attn.k_proj          attention.wk     attn_k
self_attn.v_proj          attention.wv     attn_v
self_attn.o_proj          attention.wo     attn_output
post_attention_layernorm  ffn_norm         ffn_norm
mlp.gate_proj             feed_forward.w1  ffn_gate
mlp.up_proj               feed_forward.w3  ffn_up
mlp.down_proj             feed_forward.w2  ffn_down
norm                      norm             output_norm
lm_head                   output           output
"""
NAMES = {name: row[0] for row in map(str.split, NAMES.strip().splitlines()) for name in row}
# What config.json, Meta's params.json and the key-values of a GGUF file call the same things.
FIELDS = """
num_hidden_layers        n_layers     llama.block_count
num_attention_heads      n_heads      llama.attention.head_count
num_key_value_heads      n_kv_heads   llama.attention.head_count_kv
head_dim                 head_dim     llama.rope.dimension_count
max_position_embeddings  max_seq_len  llama.context_length
rms_norm_eps             norm_eps     llama.attention.layer_norm_rms_epsilon
rope_theta               rope_theta   llama.rope.freq_base
"""
FIELDS = [line.split() for line in FIELDS.strip().splitlines()]
TABLES = ("rope.freqs", "rotary_emb.inv_freq")  # in old files; they follow from the config
# What config.json may say about things that have no shape.
KNOWN = {"model_type": ("llama",), "hidden_act": ("silu",), "attention_bias": (False,),
         "mlp_bias": (False,)}
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read_llama(path):
    """The tensors of a file under transformers' names, without "model." in front, and its config as
    config.json would have it; and rope_divisors, by which a GGUF file scales frequencies, else [].
    UserError for what is no LLaMA, or told nowhere."""
    theirs = read(path)
    if sniff(path) == "gguf":
        layout, config = 2, told_by_gguf(path)
    elif "tok_embeddings.weight" in theirs:
        layout, config = 1, told_by_meta(path)
    else:
        layout, config = 0, read_config(path.parent, KNOWN)
        if not config:
            raise UserError(f"{path}: no config.json beside it, and the number of heads and the "
                            "base of the rotary positions have no shape: fetch it, too")
    tensors = {}
    for key, t in theirs.items():
        name = rename(key)
        if name in tensors:
            raise UserError(f"{path}: {key} is there twice, under two names")
        if not key.endswith(TABLES):
            tensors[name] = t
    if layout:
        told = {row[0]: config[row[layout]] for row in FIELDS if row[layout] in config}
        config = {**config, **told, "tie_word_embeddings": "lm_head.weight" not in tensors}
        sort_halves(tensors, config)
    divisors = tensors.pop("rope_freqs.weight", None) if layout == 2 else None
    return tensors, {**config, "rope_divisors": [] if divisors is None else
                     divisors.flatten().tolist()}


def rename(key):
    """A name of any layout -> transformers'. What is not in NAMES stays, and will be refused."""
    name = key.removeprefix("model.")
    layer, name = re.fullmatch(r"(?:(?:layers|blk)\.(\d+)\.)?(.*)", name, re.DOTALL).groups()
    name = NAMES.get(name.removesuffix(".weight"))
    return key if name is None else f"{f'layers.{layer}.' if layer else ''}{name}.weight"


def sort_halves(tensors, config):
    """Rows of queries and keys from neighbours (0, 1), (2, 3), ... to halves, in place: in every
    head first all even rows, then all odd ones. The scores do not change. Where the sizes do not
    fit nothing is done: whoever builds the model will say so."""
    nh, q = config.get("num_attention_heads"), tensors.get("layers.0.self_attn.q_proj.weight")
    hs = len(q) // nh if q is not None and type(nh) is int and 0 < nh <= len(q) else 1
    for key, t in tensors.items():
        if key.endswith(("q_proj.weight", "k_proj.weight")) and hs % 2 == len(t) % hs == 0:
            pairs = t.unflatten(0, (-1, hs // 2, 2))  # (heads, hs/2, 2, C)
            tensors[key] = pairs.transpose(1, 2).flatten(0, 2)


def told_by_gguf(path):
    """The key-values of a GGUF file. What scales Llama 3's frequencies is a tensor there."""
    notes = gguf.header(path)[0]
    kind, rope = (notes.get(key) for key in ("general.architecture", "llama.rope.scaling.type"))
    if kind != "llama":
        raise UserError(f"{path}: its architecture is {kind!r}, only 'llama' is known here")
    return {**notes, "rope_scaling": None if rope == "none" else {"rope_type": rope}}


def told_by_meta(path):
    """Meta's params.json beside the weights."""
    file = path.parent / "params.json"
    params = read_json(file, "it belongs beside Meta's weights")
    if not isinstance(params, dict) or os.path.exists(path.parent / "consolidated.01.pth"):
        raise UserError(f"{path}: {file.name} is no table, or several files hold a piece of every "
                        "matrix each: take this model in transformers' layout")
    if params.get("use_scaled_rope"):  # the four numbers are the defaults of Meta's own code
        params["rope_scaling"] = {
            "rope_type": "llama3", "factor": params.get("rope_scaling_factor") or 8,
            "low_freq_factor": 1, "high_freq_factor": 4, "original_max_position_embeddings": 8192}
    return params


# ---------------------------------------------------------------------------- what is told

def told_number(told, name, default=None, whole=True, path=""):
    """A number of the config, or the default. UserError unless it is a sensible one."""
    value = default if told.get(name) is None else told[name]
    if type(value) not in (int, float) or not 0 < value < 2**40 or whole and value % 1:
        raise UserError(f"{path}: {name} is {value!r} in the config, which cannot be")
    return int(value) if whole else value


def told_rope(told, hs, path):
    """(theta, hs/2 numbers to divide the frequencies by or ()) of the rotary positions."""
    # Version 5 of transformers writes one table with rope_theta in it, 4 wrote two things.
    rope = told.get("rope_parameters") or told.get("rope_scaling") or {}
    rope = rope if isinstance(rope, dict) else {"rope_type": rope}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "llama3"):
        raise UserError(f"{path}: rotary positions scaled by {kind!r}, only 'llama3' is known here")
    theta = told_number(rope, "rope_theta", told_number(told, "rope_theta", 1e4, False, path),
                        False, path)
    divisors = told["rope_divisors"]  # of a GGUF file, which holds them ready
    if kind == "llama3":
        numbers = (told_number(rope, name, None, False, path) for name in LLAMA3)
        divisors = llama3_divisors(theta, hs, *numbers)
    if len(divisors) not in (0, hs // 2) or not all(d > 0 for d in divisors):
        raise UserError(f"{path}: rope_freqs must be {hs // 2} positive numbers")
    return theta, tuple(divisors)


def llama3_divisors(theta, hs, factor, low, high, original):
    """Llama 3.1 reads texts longer than those of its training (original tokens): a wave that fits
    more than `high` times into them stays, one that fits less than `low` times becomes factor times
    as long, between the two it is mixed. -> hs/2 numbers to divide the frequencies by. Source:
    apply_scaling in meta-llama/llama-models."""
    divisors = []
    for i in range(0, hs, 2):
        wave = 2 * math.pi * theta ** (i / hs)  # tokens for a full turn
        s = min(1, max(0, (original / wave - low) / (high - low or 1e-9)))
        divisors.append(1 / ((1 - s) / factor + s))
    return divisors
