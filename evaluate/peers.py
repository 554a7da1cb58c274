"""The peer of evaluate.speed: transformers' VisionEncoderDecoderModel with frozen halves.

It is what this project's method "vanilla" computes, with the same weights, which are copied. It is
used as its users would at their best: an image is encoded once for its five captions, its features
are repeated for them; dropout is off; captions are made in its own generate. With another dtype
than float32 it trains under autocast, and makes captions with all weights in that dtype.
"""

import importlib.util
from pathlib import Path

import torch
import torch.nn as nn

from evaluate import workloads
from ituning import plain_layer_norm
from lib.cli import UserError
from lib.devices import autocast, to_device

PEERS = ("transformers",)
RENAME = (("transformer.resblocks.", "encoder.layers."), (".ln_1.", ".layer_norm1."),
          (".ln_2.", ".layer_norm2."), (".attn.", ".self_attn."), (".c_fc.", ".fc1."),
          (".mlp.c_proj.", ".mlp.fc2."), ("ln_pre.", "pre_layrnorm."),
          ("ln_post.", "post_layernorm."), ("conv1.", "embeddings.patch_embedding."))


def library():
    """The module transformers. UserError if it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError("--peer transformers: it is not installed: pip install transformers, or "
                        "leave the flag out")
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def their_weights(model):
    """The weights of our model with Vanilla under transformers' names."""
    theirs = {"encoder.embeddings.class_embedding": model.vit.class_embedding,
              "encoder.embeddings.position_embedding.weight": model.vit.positional_embedding,
              "decoder.lm_head.weight": model.lm.wte.weight}
    for name, p in model.vit.state_dict().items():
        for ours, new in RENAME:
            name = name.replace(ours, new)
        if "in_proj_" in name:
            for part, rows in zip("qkv", p.chunk(3)):
                theirs["encoder." + name.replace("in_proj_", f"{part}_proj.")] = rows
        elif name not in ("proj", "class_embedding", "positional_embedding"):
            theirs["encoder." + name] = p
    conv1d = lambda name, p: p.t() if name.endswith("weight") and "ln" not in name else p
    for name, p in model.lm.state_dict().items():
        theirs["decoder.transformer." + name] = conv1d(name, p) if name.startswith("h.") else p
    for l, layer in enumerate(model.method.insert):
        to = f"decoder.transformer.h.{l}."
        for kind in ("weight", "bias"):
            theirs[f"{to}ln_cross_attn.{kind}"] = getattr(layer.ln_x, kind)
            q, k, v, o = (getattr(getattr(layer.xattn, x), kind) for x in "qkvo")
            for name, p in (("q_attn", q), ("c_attn", torch.cat([k, v])), ("c_proj", o)):
                theirs[f"{to}crossattention.{name}.{kind}"] = conv1d(kind, p)
    return theirs


def save(model, folder):
    """Writes the peer with the weights of our model to folder/peer."""
    hf, lm, vit = library(), model.lm.config, model.vit
    end = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), lm.vocab_size - 1)
    none = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
    eyes = hf.CLIPVisionConfig(
        hidden_size=vit.width, intermediate_size=4 * vit.width, image_size=vit.image_size,
        num_hidden_layers=len(vit.transformer.resblocks), patch_size=vit.patch,
        num_attention_heads=vit.transformer.resblocks[0].attn.heads)
    mouth = hf.GPT2Config(vocab_size=lm.vocab_size, n_positions=lm.n_positions, n_embd=lm.n_embd,
                          n_layer=lm.n_layer, n_head=lm.n_head, add_cross_attention=True,
                          is_decoder=True, **end, **none)
    config = hf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(eyes, mouth)
    peer = hf.VisionEncoderDecoderModel(config)
    peer.load_state_dict(their_weights(model))
    peer.generation_config = hf.GenerationConfig(decoder_start_token_id=lm.vocab_size - 1, **end)
    peer.save_pretrained(Path(folder) / "peer")


def piece(task):
    """As workloads.our_piece."""
    work, dtype = workloads.WORKS[task.work], getattr(torch, task.dtype)
    hf, ours = library(), workloads.build(task.folder, "vanilla").to(task.device)
    steps = None if work.beam else workloads.steps_of(task, ours)
    pixels, eot = workloads.pixels_of(task, ours), ours.lm.eot
    del ours
    peer = hf.VisionEncoderDecoderModel.from_pretrained(Path(task.folder) / "peer").to(task.device)
    peer.requires_grad_(False).train(not work.beam)

    def one_scale(encoder, args, out):  # as all methods here begin
        out.last_hidden_state = plain_layer_norm(out.last_hidden_state)
        return out
    peer.encoder.register_forward_hook(one_scale)

    if work.beam:
        peer, pixels = peer.to(dtype), pixels.to(dtype)

        def captions(new=workloads.NEW):
            ids = peer.generate(pixel_values=pixels, num_beams=work.beam, max_new_tokens=new,
                                length_penalty=0.0, do_sample=False)[:, 1:].tolist()
            return [row[:row.index(eot)] if eot in row else row for row in ids]
        return captions, peer

    trained = [p.requires_grad_() for n, p in peer.named_parameters()
               if "crossattention" in n or "ln_cross_attn" in n]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0,
                                  fused=task.device.type == "cuda")
    scaler = torch.amp.GradScaler(task.device.type, enabled=dtype == torch.float16)
    net = torch.compile(peer) if task.compile else peer

    def step(batch):
        (micro,) = batch
        images, idx, targets, *_ = to_device(micro, task.device)
        with autocast(task.device, dtype):
            if images.dim() == 4:
                with torch.no_grad():
                    feats = peer.encoder(pixel_values=images).last_hidden_state
            else:
                feats = plain_layer_norm(images)
            feats = feats.repeat_interleave(workloads.K, 0)
            loss = net(encoder_outputs=(feats,), decoder_input_ids=idx, use_cache=False,
                       labels=targets.masked_fill(targets < 0, -100)).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(trained, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss.item()

    return (lambda: [step(batch) for batch in steps()]), peer
