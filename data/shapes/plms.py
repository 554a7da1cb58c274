"""Tiny BERT, T5 and LLaMA: their vocabularies, what each is asked for in pre-training, their files.

    discourse      there is a red circle. it is left of the blue square.
    BERT           there is a [MASK] circle . it is left of the blue [MASK] .      -> red, square
    T5             there is a <extra_id_0> it is left of the <extra_id_1>.    the encoder reads
                   <extra_id_0> red circle. <extra_id_1> blue square <extra_id_2>    it writes
    LLaMA          each token from those before it, as GPT-2

paper: Devlin et al. 2019, section 3.1 (15 % of the tokens: 80 % [MASK], 10 % random, 10 % kept);
Raffel et al. 2020, section 3.1.4 (15 % of the tokens, in holes of 3 on average).

R rows, T tokens
"""

import json
import math
import re
from collections import Counter

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from data.shapes.bpe import gpt2_vocabulary
from data.shapes.export import write_config
from lib.files import replacing
from plm.bert import BERT, BERTConfig
from plm.llama import LLaMA, LLaMAConfig
from plm.t5 import EOS, PAD, T5, T5Config
from weights.safetensors import write
from weights.sentencepiece import SPACE
from weights.wordpiece import SPECIAL

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = re.compile("[a-z]+|[^a-z ]").findall  # texts are plain and in small letters
SHARE, HOLE = 0.15, 3  # of the tokens that are asked for, and how many in a hole


# ---------------------------------------------------------------------------- vocabularies

def bert_vocabulary(folder, texts):
    """vocab.txt: every word a piece, and the letters of all others."""
    words = sorted({word for text in texts for word in WORDS(text)} | {*LETTERS})
    with replacing(folder / "vocab.txt") as f:
        f.write("\n".join([*SPECIAL, *words, *(f"##{c}" for c in LETTERS), ""]).encode())


def t5_vocabulary(folder, texts):
    """tokenizer.json of a unigram model: every word with the space in front of it, marks, letters.
    Letters are so unlikely that only unknown words are spelt. -> the number of pieces."""
    counts = Counter(word for text in texts for word in re.findall("[a-z]+|[^a-z]", text))
    total = counts.total()
    pieces = {(SPACE if word.isalpha() else "") + word.replace(" ", SPACE): math.log(n / total)
              for word, n in sorted(counts.items())}
    pieces = {c: -20.0 for c in [SPACE, *LETTERS]} | pieces
    special = ["<pad>", "</s>", "<unk>"]
    content = {"version": "1.0", "normalizer": None, "model": {
        "type": "Unigram", "unk_id": 2, "byte_fallback": False,
        "vocab": [*([name, 0.0] for name in special), *([p, s] for p, s in pieces.items())]},
        "added_tokens": [{"id": i, "content": name, "special": True, "single_word": False,
                          "lstrip": False, "rstrip": False, "normalized": False}
                         for i, name in enumerate(special)],
        "pre_tokenizer": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always",
                          "split": True},
        "decoder": {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always"}}
    with replacing(folder / "tokenizer.json") as f:
        f.write(json.dumps(content, ensure_ascii=False, indent=0).encode())
    return len(content["model"]["vocab"])


# ---------------------------------------------------------------------------- models

@torch.no_grad()
def tiny(kind, folder, texts, width=128, n_layer=4):
    """A model to be pre-trained; writes its tokenizer's files to the folder."""
    if kind == "bert":
        bert_vocabulary(folder, texts)
        n = len((folder / "vocab.txt").read_text("utf-8").splitlines())
        model = BERT(BERTConfig(n, 128, 2, n_layer, 4, width, 4 * width))
    elif kind == "t5":  # a layer that writes has two attentions: fewer layers, as many numbers
        n = t5_vocabulary(folder, texts) + 100  # with its sentinels
        model = T5(T5Config(n, n_layer - 1, n_layer - 1, 4, width, 2 * width, width // 4))
    else:
        words = (word for text in texts for word in re.findall(r" ?[a-z]+| ?[^\sa-z]+", text))
        vocab, _ = gpt2_vocabulary(folder, words, most=2000)
        model = LLaMA(LLaMAConfig(len(vocab), 128, n_layer, 4, 2, width, width // 4, 3 * width,
                                  rope_theta=1e4))
    for p in model.parameters() if kind != "t5" else ():  # T5's start grows with narrow layers
        p.mul_(0.08 / 0.02 if p.dim() == 2 else 1)  # as in pretrain.py's narrow_gpt2
    model.folder = folder
    return model


def blocks(model):
    """{name: matrix} of the layers, without T5's tables of distances."""
    return {name: p for name, p in model.named_parameters() if p.dim() == 2
            and re.search(r"(^h|encoder\.layer|block)\.\d", name) and "relative" not in name}


# ---------------------------------------------------------------------------- what is asked for

def joined(rng, text, encode, length):
    """The ids of texts, one after the other, cut after so many."""
    ids = []
    while len(ids) < length:
        ids += encode(text(rng))
    return ids[:length]


def bert_batch(rng, tokenizer, text, rows=24, length=64):
    """idx (R, T) with holes, targets (R, T), -1 where nothing is asked for. No row is padded."""
    idx = torch.tensor([[tokenizer.cls, *joined(rng, text, tokenizer.encode_ordinary, length - 2),
                         tokenizer.sep] for _ in range(rows)])
    dice = torch.Generator().manual_seed(rng.getrandbits(32))
    throw = lambda: torch.rand(idx.shape, generator=dice)
    asked = (throw() < SHARE) & (idx != tokenizer.cls) & (idx != tokenizer.sep)
    asked[:, 1] |= ~asked.any(1)  # one at least
    fate, known = throw(), torch.randint(len(SPECIAL), tokenizer.n_vocab, idx.shape, generator=dice)
    holed = torch.where(fate < 0.8, tokenizer.mask, torch.where(fate < 0.9, known, idx))
    return torch.where(asked, holed, idx), torch.where(asked, idx, -1)


def corrupt(rng, ids, sentinels):
    """ids -> what the encoder reads, with a sentinel in place of each hole, and what the decoder
    writes: each sentinel and what stood there, and the sentinel that says that this was all."""
    holes, at, left = max(1, round(len(ids) * SHARE / HOLE)), 0, iter(sentinels)
    read, write = [], []
    for start in sorted(rng.sample(range(1, len(ids) - HOLE), holes)):
        # One token at least stays between two holes, or they would be one.
        start, size = max(start, at + 1), rng.choice((HOLE - 1, HOLE, HOLE + 1))
        hole = ids[start:start + size]
        if hole:
            sentinel = next(left)
            read += [*ids[at:start], sentinel]
            write += [sentinel, *hole]
            at = start + len(hole)
    return [*read, *ids[at:], EOS], [*write, next(left), EOS]


def t5_batch(rng, tokenizer, text, rows=24, length=64):
    """idx (R, S) and mask of the texts with holes, targets (R, T), -1 behind their end."""
    sentinels = [tokenizer.sentinels[f"<extra_id_{n}>"] for n in range(20)]
    pairs = [corrupt(rng, joined(rng, text, tokenizer.encode_ordinary, length), sentinels)
             for _ in range(rows)]
    idx, targets = (pad_sequence([torch.tensor(ids) for ids in side], True, fill)
                    for side, fill in zip(zip(*pairs), (PAD, -1)))
    return idx, idx != PAD, targets


def llama_batch(rng, tokenizer, text, rows=24, length=80):
    """Token ids (R, T + 1): each row starts with a text and goes on with others, as GPT-2's."""
    eot = tokenizer.eot_token
    encode = lambda words: [*tokenizer.encode_ordinary(words), eot]
    return torch.tensor([[eot, *joined(rng, text, encode, length)] for _ in range(rows)])


def loss(kind, model, rng, text):
    """Mean cross-entropy in nats of one batch. text(rng) -> a discourse."""
    if kind == "bert":
        idx, targets = bert_batch(rng, model.tokenizer, text)
        logits, targets = model.head(model(idx)[targets != -1]), targets[targets != -1]
    elif kind == "t5":
        idx, mask, targets = t5_batch(rng, model.tokenizer, text)
        written = F.pad(targets[:, :-1].clamp(min=PAD), (1, 0), value=PAD)
        logits = model(idx, mask, written)
    else:
        idx = llama_batch(rng, model.tokenizer, text)
        logits, targets = model(idx[:, :-1]), idx[:, 1:]
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-1)


# ---------------------------------------------------------------------------- files

# Our names of LLaMA's parts -> transformers', the reverse of plm/llama.py's.
LLAMA = {"wte": "embed_tokens", "h": "layers", "ln_1": "input_layernorm", "attn": "self_attn",
         "ln_2": "post_attention_layernorm", "ln_f": "norm"}
CONFIGS = {
    "bert": lambda c: {
        "architectures": ["BertForMaskedLM"], "hidden_size": c.n_embd,
        "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head,
        "intermediate_size": c.n_inner, "hidden_act": "gelu",
        "max_position_embeddings": c.n_positions, "type_vocab_size": c.n_types,
        "layer_norm_eps": 1e-12, "pad_token_id": 0},
    "t5": lambda c: {
        "architectures": ["T5ForConditionalGeneration"], "d_model": c.n_embd, "d_kv": c.head_size,
        "d_ff": c.n_inner, "num_layers": c.n_encoder, "num_decoder_layers": c.n_layer,
        "num_heads": c.n_head, "relative_attention_num_buckets": c.n_buckets,
        "relative_attention_max_distance": c.max_distance, "feed_forward_proj": "relu",
        "layer_norm_epsilon": 1e-6, "is_encoder_decoder": True, "decoder_start_token_id": PAD,
        "pad_token_id": PAD, "eos_token_id": EOS, "tie_word_embeddings": True},
    "llama": lambda c: {
        "architectures": ["LlamaForCausalLM"], "hidden_size": c.n_embd, "head_dim": c.head_size,
        "num_hidden_layers": c.n_layer, "num_attention_heads": c.n_head,
        "num_key_value_heads": c.n_kv_head, "intermediate_size": c.n_inner, "hidden_act": "silu",
        "max_position_embeddings": c.n_positions, "rms_norm_eps": c.eps, "rope_theta": c.rope_theta,
        "tie_word_embeddings": True, "bos_token_id": c.vocab_size - 1,
        "eos_token_id": c.vocab_size - 1}}


def save(kind, model, folder, notes):
    """As transformers' save_pretrained, in fp16. notes: more metadata of the file, str: str."""
    def rename(key):
        if kind == "llama":
            return "model." + ".".join(LLAMA.get(word, word) for word in key.split("."))
        return key if kind == "t5" or key.startswith("cls.") else f"bert.{key}"

    tensors = {rename(key): p.half().contiguous() for key, p in model.state_dict().items()}
    write(folder / "model.safetensors", tensors, {"format": "pt", **notes})
    write_config(folder / "config.json", {"model_type": kind, "torch_dtype": "float16",
                                          "vocab_size": model.config.vocab_size,
                                          **CONFIGS[kind](model.config)})
