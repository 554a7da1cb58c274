"""The plumbing of every command: a dataclass becomes --help, a user's mistake becomes one line.

A command describes its switches once, in a dataclass whose fields are made by `opt`:

    @dataclass
    class Config:
        lr: float = opt(3e-4, "learning rate")          # --lr 3e-4
        compile: bool = opt(False, "torch.compile")     # --compile / --no-compile
        photos: list = opt([], "image files", positional=True)

    if __name__ == "__main__":
        run(lambda: main(*parse(Config)))

No model code lives here: skip this file on a first reading.
"""

import argparse
import dataclasses
import difflib
import os
import sys
import types
import typing


class UserError(Exception):
    """Something the user can mend. Its text is one line that says what is wrong and what to do."""


def opt(default, help, choices=None, positional=False):
    """A dataclass field with its help text. The help names the source of the default value."""
    meta = {"help": help, "choices": choices, "positional": positional}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


class Parser(argparse.ArgumentParser):
    """argparse, but a typo in a flag is answered with the nearest flag and without the whole usage."""

    def error(self, message):
        if message.startswith("unrecognized arguments: "):
            wrong = message.split(": ", 1)[1].split()[0]
            flags = [f for action in self._actions for f in action.option_strings]
            near = difflib.get_close_matches(wrong.split("=")[0], flags, n=1)
            message = f"there is no {wrong}" + (f"; did you mean {near[0]}?" if near else "")
        self.exit(2, f"{self.prog}: {message} (--help lists all flags)\n")


def parse(*configs, argv=None, defaults=None, usage=None, peek=False):
    """Fills one instance of every dataclass in configs from the command line; returns them as a list.

    defaults {field: value} replaces the dataclasses' own defaults (a preset, a checkpoint's
    settings); what the command line says wins over both. peek ignores --help and all flags that it
    does not know: a first look at what decides which flags there are.
    """
    # The docstring of the file that holds the first config is the text above the flags.
    doc = sys.modules[configs[0].__module__].__doc__
    parser = Parser(description=doc, usage=usage, allow_abbrev=False, add_help=not peek,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    for config in configs:
        hints = typing.get_type_hints(config)
        for f in dataclasses.fields(config):
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            default = (defaults or {}).get(f.name, default)
            kind, meta = hints[f.name], f.metadata
            if isinstance(kind, types.UnionType):  # `int | None` is written as an int
                kind = next(k for k in typing.get_args(kind) if k is not type(None))
            value = str(default) if len(str(default)) < 200 else f"{str(default)[:60]} ..."
            text = (meta["help"] + (f" [{value}]" if default not in ("", None, []) else "")).replace("%", "%%")
            if meta["positional"]:
                parser.add_argument(f.name, nargs="*", default=default, help=meta["help"])
            elif kind is bool:
                parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction,
                                    default=default, help=text)
            elif kind is list:
                parser.add_argument(f"--{f.name}", nargs="+", default=default, help=text)
            else:
                parser.add_argument(f"--{f.name}", type=kind, default=default, help=text,
                                    choices=meta["choices"],
                                    metavar=None if meta["choices"] else kind.__name__.upper())
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
