"""The layouts in which LLaMA's weights come, written by hand: Meta's, transformers', GGUF.

config is config.json as a dictionary; tensors have Meta's names and its order of rows, in which
neighbours are rotated. Used by test_llama.py, test_gguf.py and parity/test_llama_parity.py.
"""

import json
import math
import struct

import torch
from layouts import saved, shards

CONFIG = {"model_type": "llama", "hidden_act": "silu", "vocab_size": 61, "hidden_size": 24,
          "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
          "intermediate_size": 40, "max_position_embeddings": 33, "rms_norm_eps": 1e-5,
          "tie_word_embeddings": True,
          "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Of the four waves in a head of 8 two are short, the third fits 1.84 times into 8192 tokens, the
# last, 118,000 tokens long, not once.
MIXED = (8192 / (2 * math.pi * 5e5 ** 0.5) - 1) / 3
DIVISORS = [1.0, 1.0, 1 / ((1 - MIXED) / 8 + MIXED), 8.0]
META = ["tok_embeddings", "norm", "output", "attention_norm", "ffn_norm", "attention.wq",
        "attention.wk", "attention.wv", "attention.wo", "feed_forward.w1", "feed_forward.w3",
        "feed_forward.w2"]
TRANSFORMERS = ["model.embed_tokens", "model.norm", "lm_head", "input_layernorm",
                "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
                "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
                "mlp.down_proj"]
GGUF = ["token_embd", "output_norm", "output", "attn_norm", "ffn_norm", "attn_q", "attn_k",
        "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]


def random_tensors(config, seed=0):
    """A model under Meta's names, norms not 1."""
    torch.manual_seed(seed)
    C, hs, F = config["hidden_size"], config["head_dim"], config["intermediate_size"]
    Q, K = (config[f"num_{kind}_heads"] * hs for kind in ("attention", "key_value"))
    out = {"tok_embeddings.weight": (config["vocab_size"], C), "norm.weight": (C,)}
    for l in range(config["num_hidden_layers"]):
        shapes = [(C,), (C,), (Q, C), (K, C), (K, C), (C, Q), (F, C), (F, C), (C, F)]
        out |= {f"layers.{l}.{name}.weight": s for name, s in zip(META[3:], shapes)}
    if not config["tie_word_embeddings"]:
        out["output.weight"] = out["tok_embeddings.weight"]
    return {name: torch.randn(s) * (0.3 if len(s) == 2 else 0.2) + (len(s) == 1)
            for name, s in out.items()}


def renamed(tensors, names, layer):
    out = {}
    for key, t in tensors.items():
        *where, name = key.removesuffix(".weight").split(".", 2 if key[:7] == "layers." else 0)
        out[".".join([layer, where[1]] if where else []) + "." * bool(where)
            + names[META.index(name)] + ".weight"] = t
    return out


def halves(tensors, config):
    """Rows of queries and keys as transformers has them: in a head first the even ones."""
    order = lambda rows: [h + i for h in range(0, rows, config["head_dim"])
                          for part in (0, 1) for i in range(part, config["head_dim"], 2)]
    return {k: t[order(len(t))] if k.endswith(("wq.weight", "wk.weight")) else t
            for k, t in tensors.items()}


def from_transformers(tensors, config):
    """What save_pretrained wrote, under Meta's names and in its order."""
    back, out = dict(zip(TRANSFORMERS, META)), {}
    for key, t in tensors.items():
        parts = key.removesuffix(".weight").split(".")
        where, name = (parts[1:3], parts[3:]) if parts[:2] == ["model", "layers"] else ([], parts)
        name = back[".".join(name)]
        if name in ("attention.wq", "attention.wk"):
            t = t.view(-1, 2, config["head_dim"] // 2, t.shape[1]).transpose(1, 2).reshape(t.shape)
        out[".".join([*where, name, "weight"])] = t
    return out


def transformers(folder, tensors, config, write=saved):
    return write(folder, renamed(halves(tensors, config), TRANSFORMERS, "model.layers"), config)


def transformers_4(folder, tensors, config):
    """With the tables of old files, and the rope settings in two places; a bare LlamaModel."""
    rope = dict(config["rope_parameters"])
    old = {k: v for k, v in config.items() if k != "rope_parameters"} | {
        "rope_theta": rope.pop("rope_theta"), "rope_scaling": rope if len(rope) > 1 else None}
    more = {f"model.layers.{l}.self_attn.rotary_emb.inv_freq": torch.ones(3) for l in range(3)}
    theirs = renamed(halves(tensors, config), TRANSFORMERS, "model.layers") | more
    return saved(folder, {k.removeprefix("model."): t for k, t in theirs.items()}, old)


def meta(folder, tensors, config):
    params = {"dim": config["hidden_size"], "n_layers": config["num_hidden_layers"],
              "n_heads": config["num_attention_heads"], "multiple_of": 256, "vocab_size": -1,
              "n_kv_heads": config["num_key_value_heads"], "norm_eps": config["rms_norm_eps"],
              "rope_theta": config["rope_parameters"]["rope_theta"], "max_seq_len": 33,
              "use_scaled_rope": config["rope_parameters"]["rope_type"] == "llama3"}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.json").write_text(json.dumps(params))
    torch.save(tensors | {"rope.freqs": torch.ones(3)}, folder / "consolidated.00.pth")
    return folder


def packed(value):
    """A value of a key-value with its type in front: bool, int, float, str, or a list of one."""
    if isinstance(value, list):
        items = [packed(v) for v in value]
        return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(
            item[4:] for item in items)
    for kind, code, form in ((bool, 7, "?"), (int, 4, "I"), (float, 6, "f")):
        if isinstance(value, kind):
            return struct.pack("<I" + form, code, value)
    return struct.pack("<IQ", 8, len(value.encode())) + value.encode()


def gguf_bytes(tensors, notes, version=3, align=32):
    """A GGUF file. tensors: {name: float32 or float16 tensor, or (type, shape, bytes)}."""
    text = lambda s: struct.pack("<Q", len(s.encode())) + s.encode()
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(notes))
    head += b"".join(text(key) + packed(value) for key, value in notes.items())
    data = b""
    for name, t in tensors.items():
        if isinstance(t, torch.Tensor):
            t = {torch.float32: 0, torch.float16: 1}[t.dtype], t.shape, t.numpy().tobytes()
        kind, shape, raw = t
        data += b"\0" * (-len(data) % align)
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind,
                                         len(data))
        data += raw
    return head + b"\0" * (-len(head) % align) + data


def gguf_notes(config):
    name = {"block_count": "num_hidden_layers", "context_length": "max_position_embeddings",
            "embedding_length": "hidden_size", "attention.head_count": "num_attention_heads",
            "attention.head_count_kv": "num_key_value_heads", "rope.dimension_count": "head_dim",
            "attention.layer_norm_rms_epsilon": "rms_norm_eps"}
    return {"general.architecture": "llama",
            "llama.rope.freq_base": config["rope_parameters"]["rope_theta"],
            **{f"llama.{theirs}": config[ours] for theirs, ours in name.items()}}


def gguf(folder, tensors, config, half=False, notes=None):
    """The divisors of scaled frequencies are a tensor. notes: more, or other ones."""
    theirs = renamed(tensors, GGUF, "blk")
    if config["rope_parameters"]["rope_type"] == "llama3":
        theirs["rope_freqs.weight"] = torch.tensor(DIVISORS)
    theirs = {k: t.half() if half and t.dim() == 2 else t for k, t in theirs.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.gguf").write_bytes(gguf_bytes(theirs, gguf_notes(config) | (notes or {})))
    return folder


LAYOUTS = {"transformers": transformers, "transformers 4": transformers_4, "Meta": meta,
           "GGUF": gguf, "shards": lambda *args: transformers(*args, write=shards)}
