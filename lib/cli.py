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
import atexit
import dataclasses
import difflib
import os
import re
import signal
import sys
import time
import types
import typing

LONGEST = 1000  # characters of a message
KINDS = (bool, int, float, str, list)  # what a setting can be


def printable(text):
    """A text as a terminal can show it in one line: escape codes, line breaks and halves of
    characters, which names of files and tensors may hold, are spelled out ("\\n", "\\x1b")."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


class UserError(Exception):
    """Something the user can mend. Its text is one line that says what is wrong and what to do,
    whatever names are in it: it is printable, and of too long a one the middle is left out."""

    def __init__(self, text):
        text = str(text)
        if len(text) > LONGEST:  # first, since spelling out a text of megabytes takes its time
            text = f"{text[:LONGEST]} ... {text[-LONGEST:]}"
        text = printable(text)
        if len(text) > LONGEST:
            half = LONGEST // 2 - 3
            text = f"{text[:half]} ... {text[-half:]}"
        super().__init__(text)


def opt(default, help, choices=None, positional=False, alias=None, at_least=0, at_most=1e9):
    """A dataclass field with its help text. The help names the source of the default value.

    alias: another spelling of the flag. at_least, at_most: the range of a number.
    """
    meta = {"help": help, "choices": choices, "positional": positional, "alias": alias,
            "at_least": at_least, "at_most": at_most}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=meta)
    return dataclasses.field(default=default, metadata=meta)


def default_of(field):
    """The default value of a dataclass field. UserError for a field without one."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is dataclasses.MISSING:
        raise UserError(f"the setting {field.name} has no default: give it one, as in "
                        f'{field.name}: float = opt(1.0, "what it does")')
    return field.default_factory()


def check_range(flag, value, least=0, most=1e9):
    """UserError for a number that is out of range; nan is out of every range."""
    if not least <= value <= most:
        raise UserError(f"{flag} {value}: must be {least:g} or more" if value < least else
                        f"{flag} {value}: must be at most {most:,.15g}" if value > most else
                        f"{flag} {value}: must be a number")


def check_setting(name, field, kind, value):
    """UserError for a value that the field's flag could not have given it."""
    kind, meta = kind_of(field, kind), field.metadata
    if value is None and default_of(field) is None:
        return
    if not (type(value) is kind or kind is float and type(value) is int):
        raise UserError(f"{name} {value!r}: must be of type {kind.__name__}")
    if meta.get("choices") and value not in meta["choices"]:
        raise UserError(f"{name} {value!r}: must be one of {', '.join(meta['choices'])}")
    if kind in (int, float):
        check_range(name, value, meta.get("at_least", 0), meta.get("at_most", 1e9))


class Parser(argparse.ArgumentParser):
    """argparse, but a typo in a flag is answered with the nearest one and without the usage."""

    def error(self, message):
        if message.startswith("unrecognized arguments: "):
            wrong = next(iter(message.split(": ", 1)[1].split()), "empty argument")
            near = self.nearest(wrong)
            message = f"there is no {wrong}" + (f"; did you mean {near}?" if near else "")
        self.exit(2, f"{UserError(f'{self.prog}: {message} (--help lists all flags)')}\n")

    def nearest(self, wrong):
        """The flag that was meant: one that is spelled much like it, or whose help speaks of it
        (--learning_rate); of a word without a flag, the first flag of the command."""
        flags = [f for action in self._actions for f in action.option_strings]
        if not wrong.startswith("-"):
            first = next((f for f in flags if f not in ("-h", "--help")), None)
            return first and f"{first} {wrong}"
        wrong = wrong.split("=")[0]
        if near := difflib.get_close_matches(wrong, flags, n=1):
            return near[0]
        words = wrong.strip("-").replace("_", " ").replace("-", " ").lower()
        return next((action.option_strings[0] for action in self._actions
                     if len(words) > 3 and words in str(action.help).lower()), None)


def as_number(flag, kind, meta):
    """What turns a flag's text into a number in its range."""
    def number(text):
        value = kind(text)
        check_range(flag, value, meta.get("at_least", 0), meta.get("at_most", 1e9))
        return value

    number.__name__ = kind.__name__  # for "invalid int value"
    return number


def kind_of(field, kind):
    """The type of a setting, one of KINDS: `int | None` is written as an int."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    kind = typing.get_origin(kind) or kind  # list[str]
    if kind not in KINDS:
        raise UserError(f"the setting {field.name} is of type {kind}: a flag can be "
                        f"{', '.join(k.__name__ for k in KINDS)}")
    return kind


def add_flag(parser, field, kind, default):
    """One dataclass field as a flag of the parser."""
    meta, kind = field.metadata, kind_of(field, kind)
    value = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else str(default)
    value = value if len(value) < 200 else f"{value[:60]} ..."
    text = meta.get("help", "") + (f" [{value}]" if default not in ("", None, []) else "")
    given = {"default": default, "help": text.replace("%", "%%")}
    if meta.get("positional"):
        parser.add_argument(field.name, nargs="*", default=default, help=meta["help"])
        return
    if kind is bool:
        given["action"] = argparse.BooleanOptionalAction
    elif kind is list:
        given["nargs"] = "+"
    else:
        choices = meta.get("choices")
        kind = as_number(f"--{field.name}", kind, meta) if kind in (int, float) else kind
        metavar = None if choices else kind.__name__.upper()
        given |= {"type": kind, "choices": choices, "metavar": metavar}
    names = [f"--{name}" for name in (field.name, meta.get("alias")) if name]
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
    for f in (f for config in configs for f in dataclasses.fields(config)):
        if values[f.name] == [] != default_of(f):  # what argparse makes of --lm=--
            parser.error(f"argument --{f.name}: expected a value")
    return [config(**{f.name: values[f.name] for f in dataclasses.fields(config)})
            for config in configs]


def note(text, end="\n"):
    """Says something on stderr: stdout is for results alone."""
    print(printable(text), end=end, file=sys.stderr, flush=True)


def clock(seconds):
    """75 -> "1:15"; 3700 -> "1:01:40"."""
    m, s = divmod(round(seconds), 60)
    h, m = divmod(m, 60)
    return f"{h}:{m:02}:{s:02}" if h else f"{m}:{s:02}"


def rate(n):
    """1670.4 -> "1,670"; 3.14 -> "3.1"."""
    return f"{n:,.0f}" if n >= 10 else f"{n:.1f}"


def time_left(first, steps):
    """left(step) -> "1:15", from the time that the steps since `first` took."""
    began = time.time()
    return lambda step: clock((time.time() - began) / max(1, step - first) * (steps - step))


def run(main):
    """Calls main() and leaves the process: a UserError becomes one line and exit status 1."""
    # At the end, Ctrl-C would only show how far Python is with cleaning up.
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed (>&-): else the next file opened takes its number
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")  # for characters that it lacks
    try:
        main()
        sys.stdout.flush()
    except UserError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)  # the shell's own number for Ctrl-C
    except BrokenPipeError:  # `... | head`; keep Python from flushing into the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)  # the shell's own number for that: what was to be saved may not be
    except OSError as e:  # a full disk, a name that is too long
        where = f"{e.filename}: " if e.filename is not None else ""
        sys.exit(f"error: {UserError(f'{where}{e.strerror or e}')}")
    except (MemoryError, RuntimeError) as e:  # torch raises the latter
        if isinstance(e, RuntimeError) and not re.search("(allocate|out of) memory", str(e)):
            raise
        sys.exit("error: not enough memory for this; a smaller --batch needs less, and in training "
                 "a larger --accumulate")
