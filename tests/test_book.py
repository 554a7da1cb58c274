"""The annotated book, docs/index.html: it is the seven files, line for line, and nothing else."""

import ast
import io
import re
import runpy
import tokenize
from html.parser import HTMLParser

import pytest
from conftest import ROOT

BOOK = ("gpt2.py", "clip_vit.py", "model.py", "ituning.py", "prompts.py", "train.py", "sample.py")
DEFINED = ast.ClassDef, ast.FunctionDef
PAGE = (ROOT / "docs" / "index.html").read_text("utf-8")


class Reader(HTMLParser):
    """Reads the page back: files[name][column] = {line: text}, column "code" or "prose".

    What the page shows by other means than letters is written again: `code`, "paper:", the dashes
    of a banner, the quotes or "# " and the indentation of prose. Headers and contents are skipped.
    """

    def __init__(self, page):
        super().__init__()
        self.files, self.ids, self.links, self.tags = {}, [], [], []
        self.block = self.skip = None  # the line or prose being read; the tag being skipped
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[name] for name in ("href", "src") if name in attrs]
        kind = attrs.get("class")
        if tag == "section":
            self.lines = self.files[attrs["id"]] = {"code": {}, "prose": {}}
        elif self.skip is None and (tag in ("nav", "header", "style") or kind == "no"):
            self.skip = tag
        elif kind in ("line", "doc", "note"):
            assert self.block is None
            self.block, self.kind, self.place, self.text = tag, kind, attrs, ""
        elif tag == "h3":
            self.text += "-" * (76 - int(self.place["data-indent"])) + " "
        elif tag == "code":
            self.text += "`"

    def handle_endtag(self, tag):
        if tag == self.skip:
            self.skip = None
        elif tag == self.block:
            self.block = None
            self.finish()
        elif tag == "code" and self.block:
            self.text += "`"
        elif tag == "b" and self.block:
            self.text += ":"

    def handle_data(self, data):
        if self.skip == "a":  # the number of a line
            assert self.place["id"].endswith(f"-{data}")
        elif self.block and not self.skip:
            self.text += data
        elif hasattr(self, "lines") and not self.skip:
            assert not data.strip(), data  # no words of its own

    def finish(self):
        number = int(self.place["id"].rsplit("-", 1)[1])
        if self.kind == "line":
            assert number not in self.lines["code"] and "\n" not in self.text
            self.lines["code"][number] = self.text
            return
        indent = " " * int(self.place["data-indent"])
        text = f'"""{self.text}"""' if self.kind == "doc" else self.text
        for i, line in enumerate(text.split("\n"), number):
            if self.kind == "note":
                line = f"# {line}".rstrip()
            assert i not in self.lines["prose"]
            self.lines["prose"][i] = indent + line if line else ""


@pytest.fixture(scope="module")
def read():
    return Reader(PAGE)


def prose_lines(text):
    """The numbers of the lines that are prose: those of docstrings, and of comments alone."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, *DEFINED)) and ast.get_docstring(node):
            found |= {*range(node.body[0].lineno, node.body[0].end_lineno + 1)}
    for t in tokenize.generate_tokens(io.StringIO(text).readline):
        if t.type == tokenize.COMMENT and not t.line[:t.start[1]].strip():
            found.add(t.start[0])
    return found


def test_the_page_is_what_the_script_makes_of_the_files_now():
    made = runpy.run_path(ROOT / "docs" / "book.py")["page"]()
    assert PAGE == made, "the files have changed: python docs/book.py"


def test_the_files_stand_in_reading_order(read):
    assert tuple(read.files) == BOOK
    for name, after in zip(BOOK, BOOK[1:]):
        assert f"\nNext: {after}\n" in (ROOT / name).read_text("utf-8")


@pytest.mark.parametrize("name", BOOK)
def test_the_two_columns_together_are_the_file_line_for_line(read, name):
    text, columns = (ROOT / name).read_text("utf-8"), read.files[name]
    assert columns["prose"].keys() == prose_lines(text)
    assert not columns["prose"].keys() & columns["code"].keys()
    lines = columns["prose"] | columns["code"]
    assert "".join(f"{lines[n]}\n" for n in range(1, len(lines) + 1)) == text
    assert list(columns["code"]) == sorted(columns["code"])  # and in this order on the page
    assert list(columns["prose"]) == sorted(columns["prose"])


def test_drawings_stand_as_they_are_and_only_they():
    drawn = re.findall(r'(?s)<pre style="--w:(\d+)">(.*?)</pre>', PAGE)
    assert len(drawn) > 10
    for width, text in drawn:
        assert "<" not in text and all(line.startswith(" ") for line in text.split("\n"))
    for text in re.findall(r"(?s)<p>(.*?)</p>", PAGE):
        assert "\n " not in text and "   " not in text


@pytest.mark.parametrize("name", BOOK)
def test_every_class_and_function_has_an_address(read, name):
    def walk(node, path):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, DEFINED):
                assert f"{path}.{child.name}" in read.ids
                walk(child, f"{path}.{child.name}")
            else:
                walk(child, path)

    walk(ast.parse((ROOT / name).read_text("utf-8")), name.removesuffix(".py"))


def test_the_page_is_one_small_file_that_needs_no_other(read):
    assert len(PAGE.encode()) < 1_000_000
    assert len(read.ids) == len(set(read.ids))
    for link in read.links:  # into the page itself, or to a paper
        assert link[1:] in read.ids if link[0] == "#" else link.startswith("https://arxiv.org/abs/")
    assert not {"script", "link", "img", "iframe"} & set(read.tags)
    assert "url(" not in PAGE and "@import" not in PAGE and "@font-face" not in PAGE
