"""Makes the annotated book, docs/index.html, from the seven files: prose left, code right.

    python docs/book.py

  prose: docstrings, and comments that have a line of their own      on the left, or above
  code:  every other line, blank ones and comments behind code too   on the right, or below

Each line of a file goes to one of the two and keeps its number (its address: #gpt2.py-46). Of the
prose the quotes, the "# " and the indentation are taken off, and nothing else: line ends stay line
ends, which a browser shows as spaces. Lines that begin with a space are drawings and stay as they
are. The same on every Python.
"""

import ast
import io
import keyword
import re
import tokenize
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOOK = ("gpt2.py", "clip_vit.py", "model.py", "ituning.py", "prompts.py", "train.py", "sample.py")
DEFINED = ast.ClassDef, ast.FunctionDef

# What is marked up in prose; else it is only escaped.
INLINE = re.compile(
    r"\b(?P<tag>paper|differs|pitfall):|`(?P<code>[^`\n]+)`|arXiv\s(?P<arxiv>\d{4}\.\d{5})"
    r"|(?<![\w/])(?P<file>" + "|".join(BOOK).replace(".", r"\.") + r")\b"
    r"|(?P<shape>\((?=[^()\n]*\b[A-Z]\b)(?:[\w.*+/ -]{1,9},)+[\w.*+/ -]{0,20}\))"
    r"|(?P<name>(?<![\w-])--\w+|\b[a-z][\w-]*(?:[./]\w[\w-]*)+\b|\b[a-zA-Z]\w*_\w+\b|\b[A-Z]_\w+\b)"
    r"|(?P<whole>\b[A-Z]\w*-\w+)")

STYLE = """
:root { color-scheme: light dark; --bg: #fcfbf8; --text: #2c2b29; --faint: #7d7970; --line: #e6e2d8;
  --code: #f5f3ed; --link: #2f5f8f; --key: #7a3e8f; --str: #3f6b3a; --num: #99541c; --com: #77736a;
  --blue: #2f5f8f; --amber: #8a5a00; --red: #a8342a; --mark: #fbf0c8;
  --serif: Charter, "Iowan Old Style", "Source Serif 4", Georgia, "Liberation Serif", serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace }
@media (prefers-color-scheme: dark) { :root { --bg: #17181b; --text: #d6d3cb; --faint: #817e77;
  --line: #2c2e33; --code: #1d1f23; --link: #8ab4dd; --key: #c59bd6; --str: #9cc08f; --num: #dba678;
  --com: #938f86; --blue: #8ab4dd; --amber: #dfb362; --red: #ec9086; --mark: #3a3520 } }
html { scroll-padding-top: 4rem; -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--bg); color: var(--text); font: 16px/1.55 var(--serif) }
a { color: var(--link); text-decoration: none } a:hover { text-decoration: underline }
code, kbd { font: .82em var(--mono) } code, kbd, p > span { white-space: nowrap }
main { max-width: 1560px; margin: auto }
.cover { padding: 5rem 2.5rem 4rem; display: grid; gap: 3rem 4rem;
  grid-template-columns: minmax(0, 1fr) minmax(0, 1fr) }
h1 { font-size: 3.4rem; font-weight: 400; line-height: 1; margin: 0 0 1.2rem }
.cover > div > p { font-size: 1.2rem; max-width: 32em; margin: 0 0 1em }
.cover > div > p.key { font-size: 1rem; color: var(--com) }
ol { list-style: none; margin: 0; padding: 0; grid-column: 1 / -1; display: grid; gap: 0 4rem;
  grid-template-columns: repeat(2, minmax(0, 1fr)); counter-reset: n }
li { border-top: 1px solid var(--line); padding: .9rem 0 1rem 2.2rem; position: relative;
  counter-increment: n }
li::before { content: counter(n); position: absolute; left: 0; color: var(--faint) }
li > a { font: .95rem var(--mono) } li > span { float: right }
li > span, header span { color: var(--faint); font-size: .85rem }
li p { margin: .15rem 0 0 }
section { padding-bottom: 5rem }
header { position: sticky; top: 0; z-index: 1; background: var(--bg); padding: .7rem 2.5rem;
  border-bottom: 1px solid var(--line); display: flex; align-items: baseline; gap: 1rem }
h2 { font: 1.05rem var(--mono); margin: 0 } h2 em { font-style: normal; color: var(--faint);
  font-family: var(--serif); margin-right: .4rem }
header nav { margin-left: auto; font: .82rem var(--mono) } header nav a + a { margin-left: 1.6rem }
p { margin: 0 0 .7em }
h3 { font-size: 1.25rem; font-weight: 400; margin: 0 0 .5rem; line-height: 1.3 }
section > .doc { position: relative; padding: 2.5rem 2.5rem 2rem; max-width: 46rem;
  font-size: 1.05rem }
section > .doc p:first-of-type { font-size: 1.35rem; line-height: 1.4; margin-bottom: 1.2em }
.row { display: grid; grid-template-columns: minmax(0, 1fr) 51rem }
.prose, .toc { padding: 0 1.5rem 0 2.5rem; margin-top: -.2rem }
.toc { font: .82rem/1.9 var(--mono) } .toc a { display: block }
.prose > div { position: relative; padding-bottom: .3rem; max-width: 36rem }
.doc pre, .note pre { margin: 0 0 1em; overflow-x: auto }
.doc, .note, .cover > div { container-type: inline-size }
.doc pre, .note pre, .cover pre { font: 13px/1.28 var(--mono);
  font-size: clamp(7px, 100cqw / (var(--w) * .605), 13px); color: var(--text) }
b { font: 600 .74em/1 system-ui, sans-serif; border-radius: .3em; padding: .12em .45em .2em;
  border: 1px solid; letter-spacing: .02em }
.paper { color: var(--blue) } .differs { color: var(--amber) } .pitfall { color: var(--red) }
.code { background: var(--code); font: 12.5px/1.55 var(--mono); padding: 0 .5rem 0 0 }
.line { white-space: pre-wrap; overflow-wrap: anywhere; position: relative; scroll-margin: 4rem;
  --hang: calc((min(var(--i), 28) + 2) * 1ch); padding-left: calc(3.3rem + var(--hang));
  text-indent: calc(0px - var(--hang)); min-height: 1.55em }
.no { position: absolute; left: 0; width: 2.6rem; text-align: right; text-indent: 0;
  color: var(--faint); user-select: none }
.prose .no, section > .doc .no { font: 11px/1.6rem var(--mono); left: -2.3rem; width: 1.7rem }
section > .doc .no { left: .2rem; line-height: 2rem }
.code a:not(.no) { color: inherit } .code a.d { font-weight: 600 }
.code a:not(.no, .d) { text-decoration: underline dotted var(--faint) 1px;
  text-underline-offset: 3px }
.code i { font-style: normal } .code u { text-decoration: none }
.k { color: var(--key) } .s { color: var(--str) } .n { color: var(--num) } .c { color: var(--com) }
:target { background: var(--mark) } section:target, main:target { background: none }
.code a.d:target { background: var(--mark) }
@media (max-width: 1240px) { .row { grid-template-columns: minmax(0, 1fr) minmax(0, 1.5fr) } }
@media (max-width: 900px) { .cover, ol, .row { grid-template-columns: minmax(0, 1fr) }
  .cover { padding: 3rem 1.1rem 2rem } header, section > .doc { padding-left: 1.1rem;
  padding-right: 1.1rem } .prose, .toc { padding: .9rem 1.1rem .2rem } h1 { font-size: 2.6rem }
  .toc a { display: inline-block; margin-right: .8rem } .code { font-size: 11px; padding: .4rem 0 }
  .line { padding-left: calc(2.4rem + var(--hang)); --hang: calc((min(var(--i), 20) + 2) * 1ch) }
  .no { width: 1.8rem } .prose:empty { display: none }
  .line u { display: inline-block; max-width: 20ch; height: 1em; overflow: hidden; text-indent: 0 }
  .prose > div { padding: 0 } header { gap: .6rem }
  header nav a + a { margin-left: .8rem } header nav { font-size: .68rem; white-space: nowrap }
  h2 { white-space: nowrap; font-size: .95rem }
  h2 em, header span, .doc > .no, .note > .no { display: none } }
"""

HEAD = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>seeGPT, the annotated book</title>
<style>{STYLE}</style>
</head>
<body>
"""

TOP = """<main id="top">
<div class="cover">
<div><h1>seeGPT</h1>
<p>The simplest code that teaches a frozen GPT-2 to see, in seven files and {lines:,} lines. Each
can be read once, from its first line to its last, in this order.</p>
<p class="key"><b class="paper">paper</b> where something stands in the paper<br>
<b class="differs">differs</b> from the paper or its code, and why<br>
<b class="pitfall">pitfall</b> a mistake that people really make</p></div>
<div>{figure}</div>
<ol>
{contents}
</ol>
</div>
"""


def inline(text, only=("tag", "code", "arxiv", "file", "shape", "name", "whole")):
    """Prose as HTML: labels, links, and what is code in a font of its own."""
    def mark(m):
        kind, found = m.lastgroup, escape(m[m.lastgroup], False)
        if kind not in only:
            return escape(m[0], False)
        return {"tag": f'<b class="{found}">{found}</b>', "code": f"<code>{found}</code>",
                "arxiv": f'<a href="https://arxiv.org/abs/{found}">{m[0]}</a>',
                "file": f'<a href="#{found}"><kbd>{found}</kbd></a>',
                "whole": f"<span>{found}</span>"}.get(kind, f"<kbd>{found}</kbd>")

    parts, at = [], 0
    for m in INLINE.finditer(text):
        parts += [escape(text[at:m.start()], False), mark(m)]
        at = m.end()
    return "".join(parts) + escape(text[at:], False)


def drawing(text):
    """Kept as it is; --w: its width, by which the letters are chosen small enough."""
    return f'<pre style="--w:{max(map(len, text.splitlines()))}">{escape(text, False)}</pre>'


def flow(text):
    """The text of a docstring or comment: paragraphs, drawings, banners; every line end is kept."""
    out = []
    for part in re.findall(r"(?m)^\n+|(?:^ .*\n)+|(?:^[^ \n].*\n)+", text + "\n"):
        body = part.rstrip("\n")
        if body.startswith(" "):
            html = drawing(body)
        elif body.startswith("-----"):
            html = f"<h3>{escape(body.lstrip('- '), False)}</h3>"
        else:
            html = f"<p>{inline(body)}</p>" if body else ""
        out.append(html + part[len(body):])
    return "".join(out)[:-1]


def definitions(tree, stem):
    """Of classes, functions and constants {line: "gpt2.Cache.add"}; of docstrings {first line:
    (last line, where the class or function begins)}."""
    names = {node.lineno: f"{stem}.{node.targets[0].id}" for node in tree.body
             if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}
    docs, todo = {}, [(tree, stem)]
    while todo:
        node, path = todo.pop()
        if isinstance(node, DEFINED):
            path = names[node.lineno] = f"{path}.{node.name}"
        if isinstance(node, (ast.Module, *DEFINED)) and ast.get_docstring(node):
            above = [d.lineno for d in getattr(node, "decorator_list", ())]
            first = min([getattr(node, "lineno", 1), *above])
            docs[node.body[0].lineno] = node.body[0].end_lineno, first
        todo += [(child, path) for child in ast.iter_child_nodes(node)]
    return names, docs


def tokens(text):
    """(kind, text, start, end). An f-string, many tokens since Python 3.12, is one everywhere."""
    depth = 0
    for t in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[t.type]
        if kind.endswith("STRING_START"):
            if not depth:
                start = t.start
            depth += 1
        elif kind.endswith("STRING_END"):
            depth -= 1
            if not depth:
                yield "STRING", "", start, t.end
        elif not depth:
            yield kind, t.string, t.start, t.end


def colours(text, names, links):
    """[line as HTML], coloured: names of the book's classes and functions link to their place."""
    found = [t for t in tokens(text) if t[0] in ("NAME", "OP", "STRING", "NUMBER", "COMMENT")]
    lines = text.splitlines()
    out, at = [""] * len(lines), [0] * len(lines)
    for (_, last, _, _), (kind, word, start, end), (_, after, _, _) in zip(
            [("", "", 0, 0)] + found, found, found[1:] + [("", "", 0, 0)]):
        if kind == "OP":
            continue
        for row in range(start[0] - 1, end[0]):
            line = lines[row]
            a = start[1] if row == start[0] - 1 else len(line) - len(line.lstrip())
            b = end[1] if row == end[0] - 1 else len(line)
            piece = escape(line[a:b], False)
            anchor = kind == "NAME" and names.get(row + 1)
            if anchor and (last in ("def", "class") or (a == 0 and after == "=")):
                piece = f'<a class="d" id="{anchor}" href="#{anchor}">{piece}</a>'
            elif keyword.iskeyword(word):
                piece = f'<i class="k">{piece}</i>'
            elif kind == "COMMENT":
                piece = f'<i class="c">{inline(line[a:b], ("tag",))}</i>'
            elif kind != "NAME":
                piece = f'<i class="{kind[0].lower()}">{piece}</i>'
            elif word in links and last != "." and after != "=":
                piece = f'<a href="#{links[word]}">{piece}</a>'
            out[row] += escape(line[at[row]:a], False) + piece
            at[row] = b
    return [done + escape(line[n:], False) for done, line, n in zip(out, lines, at)]


def rows(text, docs):
    """[(prose, code)]: prose [(kind, first, last)], code [line number], as they stand side by side.

    A comment begins a row, and so does a class or function with a docstring; what follows is beside
    it, up to the next.
    """
    lines, out, n = text.splitlines(), [], 1
    notes = {start[0]: start[1] for kind, _, start, _ in tokens(text)
             if kind == "COMMENT" and not lines[start[0] - 1][:start[1]].strip()}
    starts = {first for _, first in docs.values()}
    while n <= len(lines):
        new = not out or any(lines[i - 1] for i in out[-1][1])  # not after a banner and blank lines
        if new and (n in starts or n in notes):
            out.append(([], []))
        if n in docs:
            out[-1][0].append(("doc", n, docs[n][0]))
            n = docs[n][0] + 1
        elif n in notes:
            first, indent = n, notes[n]
            while notes.get(n) == indent:
                n += 1
            out[-1][0].append(("note", first, n - 1))
        else:
            out[-1][1].append(n)
            n += 1
    return out


def prose(name, lines, kind, first, last):
    """One docstring or comment as HTML, without what makes it one."""
    indent = len(lines[first - 1]) - len(lines[first - 1].lstrip())
    text = [line[indent:] for line in lines[first - 1:last]]
    if kind == "doc":
        text = "\n".join(text)[3:-3]
    else:
        text = "\n".join(line[2:] for line in text)
    return (f'<div class="{kind}" id="{name}-{first}" data-indent="{indent}">'
            f'<a class="no" href="#{name}-{first}">{first}</a>{flow(text)}</div>')


def code(name, lines, numbers, coloured):
    """Lines of code as HTML, with their numbers; --i: the indentation, for lines that wrap."""
    out = []
    for n in numbers:
        indent, line = len(lines[n - 1]) - len(lines[n - 1].lstrip()), coloured[n - 1]
        line = f"<u>{line[:indent]}</u>{line[indent:]}" if indent else line
        out.append(f'<div class="line" id="{name}-{n}" style="--i:{indent}">'
                   f'<a class="no" href="#{name}-{n}">{n}</a>{line}</div>')
    return '<div class="code">' + "\n".join(out) + "</div>"


def chapter(i, name, text):
    """A file as a section: its docstring across, then rows of prose and code."""
    stem, lines, tree = name[:-3], text.splitlines(), ast.parse(text)
    names, docs = definitions(tree, stem)
    links = {path.split(".")[1]: path for path in names.values() if path.count(".") == 1}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and f"{node.module}.py" in BOOK:
            links |= {a.name: f"{node.module}.{a.name}" for a in node.names}
    coloured = colours(text, names, links)
    (opening, first), *rest = rows(text, docs)
    toc = " ".join(f'<a href="#{stem}.{node.name}">{node.name}</a>' for node in tree.body
                   if isinstance(node, DEFINED))
    out = [prose(name, lines, *block) for block in opening]
    out.append(f'<div class="row"><nav class="toc">{toc}</nav>'
               f'{code(name, lines, first, coloured)}</div>')
    for blocks, numbers in rest:
        left = "".join(prose(name, lines, *block) for block in blocks)
        out.append(f'<div class="row"><div class="prose">{left}</div>'
                   f'{code(name, lines, numbers, coloured)}</div>')
    before = f'<a href="#{BOOK[i - 1]}">&lsaquo; {BOOK[i - 1]}</a>' if i else ""
    after = f'<a href="#{BOOK[i + 1]}">{BOOK[i + 1]} &rsaquo;</a>' if i + 1 < len(BOOK) else ""
    nav = f'<nav><a href="#top">contents</a>{before}{after}</nav>'
    return (f'<section id="{name}">\n<header><h2><em>{i + 1}</em> {name}</h2>'
            f'<span>{len(lines)} lines</span>{nav}</header>\n'
            + "\n".join(out) + "\n</section>\n")


def page():
    """The whole page, as text."""
    texts = {name: (ROOT / name).read_text("utf-8") for name in BOOK}
    figure = re.search(r"(?ms)^```\n(.*?)\n```", (ROOT / "README.md").read_text("utf-8"))[1]
    contents = []
    for name, text in texts.items():
        what = re.match(r".*?[.](?=\s)", ast.get_docstring(ast.parse(text)), re.S)[0]
        contents.append(f'<li><a href="#{name}">{name}</a><span>{len(text.splitlines())} lines'
                        f'</span><p>{inline(what)}</p></li>')
    chapters = [chapter(i, name, text) for i, (name, text) in enumerate(texts.items())]
    return HEAD + TOP.format(figure=drawing(figure), contents="\n".join(contents),
                             lines=sum(len(t.splitlines()) for t in texts.values())) \
        + "".join(chapters) + "</main>\n</body>\n</html>\n"


if __name__ == "__main__":
    (ROOT / "docs" / "index.html").write_text(page(), "utf-8", newline="\n")
