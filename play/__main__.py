"""A place to play: draw shapes or drop a photo, and see what the model says and where it looked.

    python -m play                         the newest runs in out/, each for what it has learnt
    python -m play --ckpt out/a out/b      certain ones

    python train.py                                                            a caption
    python train.py --dataset shapes/vqa --search                              answers to questions
    python train.py --dataset shapes/regions --init_from out/shapes-ituning    which thing is meant

The page is served to this machine alone (127.0.0.1); open the address that is printed. Ctrl-C ends
it. Nothing leaves the machine, and the page works without a network.
"""

from lib.cli import opt, parse, run  # isort: skip (lib before torch)
from dataclasses import dataclass

from lib.devices import pick_device
from play.models import Models, find_runs
from play.server import Server


@dataclass
class Config:
    ckpt: list = opt([], "runs' folders or checkpoint files; empty: the newest in out/")
    port: int = opt(8000, "of the address; 0: any that is free", at_most=65535)
    device: str = opt("auto", "auto, cpu, cuda, mps")


def main(config):
    models = Models(find_runs(config.ckpt), pick_device(config.device))
    with Server(config.port, models) as server:
        for line in models.lines():
            print(line)
        print(f"open {server.address} in a browser; Ctrl-C ends it", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    run(lambda: main(*parse(Config)))
