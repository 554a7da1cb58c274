"""Lists, fetches and describes weight files.

    python -m weights                       the public files known here
    python -m weights gpt2 ViT-B/16         fetch them; say where they lie and what was checked
    python -m weights model.safetensors     print what is inside a file or a folder
"""

import dataclasses

from lib.cli import UserError, opt, parse, printable, run
from weights.public import FILES, fault, fetch, locate
from weights.reading import metadata, read


@dataclasses.dataclass
class Config:
    what: list = opt([], "names of public files to fetch, or files and folders to look into",
                     positional=True)


def describe(path):
    """Prints name, shape and dtype of every tensor, the metadata, and the sums."""
    tensors = read(path)
    names = {name: printable(name[:1000]) for name in tensors}
    width = min(60, max(map(len, names.values()), default=0))
    for name, x in tensors.items():
        shape = " x ".join(map(str, x.shape)) or "scalar"
        print(f"{names[name]:{width}}  {shape:20} {str(x.dtype).removeprefix('torch.')}")
    for key, value in metadata(path).items():
        print(printable(f"metadata: {key} = {value}"))
    print(f"{len(tensors)} tensors, {sum(x.numel() for x in tensors.values()):,} numbers, "
          f"{sum(x.numel() * x.element_size() for x in tensors.values()):,} bytes")


def main(config):
    if not config.what:
        for name, public in FILES.items():
            size = f"{public.size / 1e6:,.1f} MB" if public.size else "size unknown"
            print(f"{name:34} {size:>12}  {public.urls[0]}")
    for what in config.what:
        if what not in FILES:
            describe(locate(what))
            continue
        path, public = fetch(what), FILES[what]
        if problem := fault(path, public, full=True):
            raise UserError(f"{path}: not {what}: {problem}; delete it and run again")
        checked = ["size"] * bool(public.size) + ["structure"] + ["sha256"] * bool(public.sha256)
        print(f"{what}: {path}, {path.stat().st_size:,} bytes, checked: {', '.join(checked)}"
              + ("" if public.sha256 else " (no sha256 is known)"))


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
