"""The plumbing of every command: a dataclass becomes --help, a user's mistake becomes one line.

A command describes its switches once, in a dataclass whose fields are made by `opt`:

    @dataclass
    class Config:
        lr: float = opt(3e-4, "learning rate")          # --lr 3e-4
        compile: bool = opt(False, "torch.compile")     # --compile / --no-compile
        photos: list = opt([], "image files", positional=True)

    if __name__ == "__main__":
        run(lambda: main(*parse(Config)))
"""

import argparse
import dataclasses
import difflib
import os
import sys
import time
import types
import typing


class UserError(Exception):
    """Something the user can mend. Its text is one line that says what is wrong and what to do."""


def opt(default, help, choices=None, positional=False, alias=None):
    """A dataclass field with its help text. The help names the source of the default value.

    alias: another spelling of the flag.
    """
    meta = {"help": help, "choices": choices, "positional": positional, "alias": alias}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def default_of(field):
    """The default value of a dataclass field."""
    missing = field.default is dataclasses.MISSING
    return field.default_factory() if missing else field.default


class Parser(argparse.ArgumentParser):
    """argparse, but a typo in a flag is answered with the nearest one and without the usage."""

    def error(self, message):
        if message.startswith("unrecognized arguments: "):
            wrong = message.split(": ", 1)[1].split()[0]
            flags = [f for action in self._actions for f in action.option_strings]
            near = difflib.get_close_matches(wrong.split("=")[0], flags, n=1)
            message = f"there is no {wrong}" + (f"; did you mean {near[0]}?" if near else "")
        self.exit(2, f"{self.prog}: {message} (--help lists all flags)\n")


def add_flag(parser, field, kind, default):
    """One dataclass field as a flag of the parser."""
    if isinstance(kind, types.UnionType):  # `int | None` is written as an int
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    meta = field.metadata
    value = " ".join(map(str, default)) if kind is list else str(default)
    value = value if len(value) < 200 else f"{value[:60]} ..."
    text = meta["help"] + (f" [{value}]" if default not in ("", None, []) else "")
    given = {"default": default, "help": text.replace("%", "%%")}
    if meta["positional"]:
        parser.add_argument(field.name, nargs="*", default=default, help=meta["help"])
        return
    if kind is bool:
        given["action"] = argparse.BooleanOptionalAction
    elif kind is list:
        given["nargs"] = "+"
    else:
        metavar = None if meta["choices"] else kind.__name__.upper()
        given |= {"type": kind, "choices": meta["choices"], "metavar": metavar}
    names = [f"--{name}" for name in (field.name, meta["alias"]) if name]
    try:
        parser.add_argument(*names, dest=field.name, **given)
    except argparse.ArgumentError:
        raise UserError(f"two settings are called {field.name}: rename that of the method's "
                        "Config, the other is a flag of the command") from None


def parse(*configs, argv=None, defaults=None, peek=False):
    """Fills an instance of every dataclass in configs from the command line -> a list of them.

    defaults {field: value} replaces the dataclasses' own defaults (a recipe, a checkpoint's
    settings); what the command line says wins over both. peek ignores --help and all flags that it
    does not know: a first look at what decides which flags there are.
    """
    # The docstring of the file that holds the first config is the text above the flags.
    doc, spec = sys.modules[configs[0].__module__].__doc__, sys.modules["__main__"].__spec__
    prog = f"python -m {spec.name.removesuffix('.__main__')}" if spec else None
    parser = Parser(prog=prog, description=doc, allow_abbrev=False, add_help=not peek,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    for config in configs:
        kinds = typing.get_type_hints(config)
        for f in dataclasses.fields(config):
            add_flag(parser, f, kinds[f.name], (defaults or {}).get(f.name, default_of(f)))
    values = vars(parser.parse_known_args(argv)[0] if peek else parser.parse_args(argv))
    return [config(**{f.name: values[f.name] for f in dataclasses.fields(config)})
            for config in configs]


def note(text, end="\n"):
    """Says something on stderr: stdout is for results alone."""
    print(text, end=end, file=sys.stderr, flush=True)


def clock(seconds):
    """75 -> "1:15"; 3700 -> "1:01:40"."""
    m, s = divmod(round(seconds), 60)
    h, m = divmod(m, 60)
    return f"{h}:{m:02}:{s:02}" if h else f"{m}:{s:02}"


def time_left(first, steps):
    """left(step) -> "1:15", from the time that the steps since `first` took."""
    began = time.time()
    return lambda step: clock((time.time() - began) / max(1, step - first) * (steps - step))


def run(main):
    """Calls main() and leaves the process: a UserError becomes one line and exit status 1."""
    for stream in (sys.stdout, sys.stderr):  # a character they lack becomes its number
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)  # the shell's own number for Ctrl-C
    except BrokenPipeError:  # `... | head` is no mistake; keep Python from flushing into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
