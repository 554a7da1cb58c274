"""T5's public files: copies and leftovers in them, and what their shapes and config.json tell.

    shared.weight                              (V, C), again as {en,de}coder.embed_tokens.weight
    encoder.block.0.layer.0.SelfAttention.q.weight          (nh * hs, C)
        ... .SelfAttention.relative_attention_bias.weight   (classes of distances, nh)
        ... .layer.1.DenseReluDense.wi.weight               (F, C); wi_0 and wi_1: version 1.1
    decoder.block.0. ...                       has one more part, which looks at the encoder's text
    lm_head.weight                             (V, C), where it is not the embedding
"""

import torch

from lib.cli import UserError
from weights.reading import drop_copy, layer_count, need_matrices, read, read_config

PAD, EOS = 0, 1  # the decoder starts with PAD; a text ends with EOS
COPIES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# In t5-base; no code reads it: in cross-attention there are no distances.
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
# What config.json may say about things that have no shape.
CONFIG = {"feed_forward_proj": ("relu", "gated-gelu"), "dense_act_fn": ("relu", "gelu_new"),
          "layer_norm_epsilon": (1e-6,), "pad_token_id": (PAD,), "eos_token_id": (EOS,),
          "decoder_start_token_id": (PAD, None), "is_encoder_decoder": (True,),
          "tie_word_embeddings": (True, False), "scale_decoder_outputs": (True, False, None),
          "relative_attention_max_distance": (128,)}


def read_t5(path):
    """(a file's tensors, each once and none that no code reads; its config.json)."""
    told = read_config(path, CONFIG)
    tensors = {key: t for key, t in read(path).items() if key != UNUSED}
    for key in COPIES:
        drop_copy(tensors, key, "shared.weight", "T5", path)
    return tensors, told


def sizes_of(tensors, told, path):
    """Fields of plm/t5.py's T5Config from the tensors' shapes: even the heads, a column each in the
    table of distances; told: config.json. Takes a copy of the embedding as output matrix out."""
    gated = any(".DenseReluDense.wi_0." in key for key in tensors)
    name = "{}.block.0.layer.{}.weight".format
    tables = [name(side, "0.SelfAttention.relative_attention_bias")
              for side in ("encoder", "decoder")]
    q = name("encoder", "0.SelfAttention.q")
    wi = name("encoder", f"1.DenseReluDense.{'wi_0' if gated else 'wi'}")
    need_matrices(tensors, ("shared.weight", *tables, q, wi), "T5 with both of its stacks", path)
    (V, C), (n, heads) = tensors["shared.weight"].shape, tensors[tables[0]].shape
    inner = len(tensors[q])
    if inner % heads or n < 4:
        raise UserError(f"{path}: queries of {inner} numbers cannot be split into {heads} heads, "
                        f"or {n} classes of distances are too few")
    # pitfall: version 5 of transformers writes that all is tied, whatever is in the file, and apart
    # from it what is scaled; version 4 knows only "tied". Without a config the head itself tells.
    head, told_tied = tensors.get("lm_head.weight"), told.get("tie_word_embeddings")
    if head is None and told_tied is False:
        raise UserError(f"{path}: lm_head.weight is missing, and config.json says that the output "
                        "matrix is not the embedding")
    tied = head is None or told_tied is not False and torch.equal(head, tensors["shared.weight"])
    if tied:
        tensors.pop("lm_head.weight", None)
    scaled = told.get("scale_decoder_outputs")
    if scaled is None:
        scaled = tied or bool(told) if told_tied is None else told_tied
    return dict(vocab_size=V, n_encoder=layer_count(tensors, "encoder.block.", path),
                n_layer=layer_count(tensors, "decoder.block.", path), n_head=heads, n_embd=C,
                n_inner=len(tensors[wi]), head_size=inner // heads, n_buckets=n, gated=gated,
                tied=tied, scaled=scaled)
