"""Writes the tiny backbones as transformers' save_pretrained does: model.safetensors in fp16 and
config.json, so that they are read by the same code as the public weights."""

import json

from gpt2 import CONV1D
from lib.files import replacing
from weights.safetensors import write

# Our names -> transformers': beginnings first, then parts; the reverse of clip_vit.RENAME.
VISION = {"class_embedding": "vision_model.embeddings.class_embedding",
          "positional_embedding": "vision_model.embeddings.position_embedding.weight",
          "conv1": "vision_model.embeddings.patch_embedding",
          "proj": "visual_projection.weight",
          "ln_pre": "vision_model.pre_layrnorm",
          "ln_post": "vision_model.post_layernorm",
          "transformer.resblocks": "vision_model.encoder.layers"}
TEXT = {"token_embedding": "text_model.embeddings.token_embedding",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "ln_final": "text_model.final_layer_norm",
        "text_projection": "text_projection.weight",
        "transformer.resblocks": "text_model.encoder.layers"}
BLOCK = {".attn.": ".self_attn.", ".ln_": ".layer_norm", ".mlp.c_fc": ".mlp.fc1",
         ".mlp.c_proj": ".mlp.fc2"}


def write_config(path, config):
    with replacing(path) as f:
        f.write(json.dumps(config, indent=2).encode() + b"\n")


def save_gpt2(model, folder, notes):
    """A GPT2 as GPT2LMHeadModel. notes: more metadata of the file, str: str."""
    tensors = {f"transformer.{key}": (p.t() if key.endswith(CONV1D) else p).half().contiguous()
               for key, p in model.state_dict().items()}
    c = model.config
    write(folder / "model.safetensors", tensors,
          {"format": "pt", "n_head": str(c.n_head), **notes})
    write_config(folder / "config.json", {
        "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
        "activation_function": "gelu_new", "n_embd": c.n_embd, "n_head": c.n_head,
        "n_layer": c.n_layer, "n_positions": c.n_positions, "vocab_size": c.vocab_size,
        "layer_norm_epsilon": 1e-5, "bos_token_id": c.vocab_size - 1,
        "eos_token_id": c.vocab_size - 1, "tie_word_embeddings": True})


def transformers_names(model, beginnings):
    """The tensors of one tower of CLIP under transformers' names, q, k and v apart."""
    tensors = {}
    for key, p in model.state_dict().items():
        for ours, theirs in beginnings.items():
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
        for ours, theirs in BLOCK.items():
            key = key.replace(ours, theirs)
        if "in_proj_" in key:
            for x, part in zip("qkv", p.chunk(3)):
                tensors[key.replace("in_proj_", f"{x}_proj.")] = part.half().contiguous()
        else:
            p = p.t() if key.endswith("_projection.weight") else p
            tensors[key] = p.half().contiguous()
    return tensors


def save_clip(vit, text, folder, notes):
    """A CLIPViT and a CLIPText as CLIPModel, with the sizes for preprocessing."""
    def tower(model, width):
        blocks = model.transformer.resblocks
        return {"hidden_size": width, "intermediate_size": 4 * width,
                "num_hidden_layers": len(blocks), "num_attention_heads": blocks[0].attn.heads,
                "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}

    V, width = text.token_embedding.weight.shape
    towers = {"vision": tower(vit, vit.width), "text": tower(text, width)}
    heads = {f"{name}_heads": str(t["num_attention_heads"]) for name, t in towers.items()}
    write(folder / "model.safetensors",
          transformers_names(vit, VISION) | transformers_names(text, TEXT),
          {"format": "pt", **heads, **notes})
    write_config(folder / "config.json", {
        "architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": vit.proj.shape[1],
        "vision_config": {"model_type": "clip_vision_model", "image_size": vit.image_size,
                          "patch_size": vit.patch, **towers["vision"]},
        "text_config": {"model_type": "clip_text_model", "vocab_size": V,
                        "max_position_embeddings": text.context, "bos_token_id": V - 2,
                        "eos_token_id": V - 1, "pad_token_id": V - 1, **towers["text"]}})
    side = vit.image_size
    write_config(folder / "preprocessor_config.json", {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": side, "width": side}, "size": {"shortest_edge": side}})
