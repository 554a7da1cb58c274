"""The tokens that BLEU, ROUGE-L and CIDEr-D compare, as Stanford's PTBTokenizer makes them.

A table of rules; only tokenize, at the end, is worth reading first.
"""

import re
import unicodedata

# The pieces of the rules below. A letter is what Python calls one, without fractions and powers,
# which it counts among them, and with the marks that stand above or below a letter.
MARKS = "".join(c for c in map(chr, range(0x300, 0x1000)) if unicodedata.category(c)[0] == "M")
LETTER = ("(?:[^\\W\\d_\u00b2\u00b3\u00b9\u00bc-\u00be\u2070\u2074-\u2079\u2080-\u2089\u2150-\u2189"
          f"\u2460-\u24ff\u2776-\u2793\U00010000-\U0010ffff]|[{MARKS}])")
ALNUM = rf"(?:{LETTER}|\d)"
APOS = "(?:['\u2019]|&apos;)"
ANYAPOS = "(?:['\u2018\u2019`]|&apos;)"
HYPHEN = "[-\u2010\u2011]"
NUMBER = r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)"
WORD = f"{LETTER}{ALNUM}*(?:[.!?]{LETTER}{ALNUM}*)*"  # pitfall: "stop.Then" is one token
PART = f"(?:[dDoOlL]{ANYAPOS}{ALNUM})?{ALNUM}+"  # o'clock, d'or
HYPHENED = rf"[A-Za-z0-9][A-Za-z0-9.,]*(?:{HYPHEN}(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9]+))+"
SLASHED = r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}"
VERB = "(?i:[msd]|re|ve|ll)"  # I'm, it's, he'd, we're, I've, you'll
ADDRESS = "[^\\s\"<>|(){}.!?,"  # the beginning of a class of characters
ABBREVIATIONS = "|".join("""
    adj adm adv al ala apr ariz alex ass[nt] assoc attys? aug ave bancorp bhd bldg blvd brig bros
    calif capt cf cie co co?mdr col colo conn corp cos cpl ct dak dec dept det drs? elec ens esq est
    etc ext feb fla fri ft ga gen govs? hon inc ind insp intl invt jan jos jr jul jun kans? ky lieut
    lt ltd maj mar md messrs mfg mich minn mlle mme mon? mont mrs? ms msgr mt mtg natl neb nev nov
    oct okla penn pfc ph plc p?pt[ey]s? pres profs? pvt rd reps? rev rt sens? sept? seq sfc sgt spc
    sq sr ste? supts? sys tel tenn thu thurs treas tues? univ va vs vt wed wisc? wm wyo""".split())
STATES = "A(?:rk|z)|Del|Ill|La|M(?:a|i)ss|Ore|Pa|Tex|Wash"  # only with a capital: "a wash." is none
ENDINGS = "|".join("""
    bat bmp c class cgi cpp dll docx? exe gif gz h html? jar java jpe?g mov mp3 pdf php pl png pptx?
    ps py sql tar txt wav x xml zip""".split())
# At every place the longest rule wins, the first of equally long ones. With a group, the token is
# the group: what follows it must be there, counts towards the length, and is read again.
RULES = [re.compile(rule) for rule in (
    f"({WORD})[nN]{ANYAPOS}[tT]|[nN]{ANYAPOS}[tT]",                       # do | n't
    f"({WORD}){APOS}{VERB}(?:[^A-Za-z]|$)",                               # dog | 's
    f"({APOS}{VERB})(?:[^A-Za-z]|$)",
    "(?i:(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na|('t)(?:is|was))",  # and again: not, na
    WORD,
    f"{PART}(?:(?:{HYPHEN}|_){PART})*",                                   # t-shirt, 10-year-old, 3d
    HYPHENED,                                                             # 1.5-inch, u.s.-made
    rf"{SLASHED}(?:\\?/{SLASHED}){{1,2}}",                                # and/or, 24/7
    "[A-Z]+(?:[+&][A-Z]+)+",                                              # AT&T
    "(?i:c[+][+]|c#|s&p-500|s&ls|pro-|anti-|cap['\u2019]n|c['\u2019]est|c'mon|e'er|nat'l|li'l|"
    "ev'ry|s'mores|-[lr][rcs]b-)",
    f"{APOS}[nN]{APOS}?|[lLdDjJ]{APOS}|[yY]{APOS}(?={LETTER})",           # rock | 'n' | roll
    f"(?i:(?:dunkin|somethin|ol){APOS}|{APOS}(?:em|cause|till?))",
    rf"{APOS}[2-9]0[sS]|({APOS}\d\d)(?:\s|$)",                            # '50s, '08
    f"[A-HJ-XZn]{APOS}{LETTER}{{2,}}"                                     # D'Angelo
    f"|[A-Za-z]+[aeiouyAEIOUY]{APOS}[aeiouA-Z][A-Za-z]*",                 # Hawai'i
    r"(')[A-Za-z]\S",                                                     # an opening quote: ' | hi
    f"{APOS}{VERB}",
    r"(?i:https?)://[^\s\"<>|()]+[^\s\"<>|().!?{},-]",
    rf"(?:www\.(?:{ADDRESS}]+\.)+[A-Za-z]{{2,4}}|(?:{ADDRESS}`'$\--_]+\.)+(?:com|net|org|edu))"
    r"(?:/[^\s\"<>|()]+[^\s\"<>|().!?{},-])?",
    r"[A-Za-z0-9][^\s\"<>|()]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+",  # me@home.org
    rf"@[A-Za-z_][A-Za-z_0-9]*|#{LETTER}+",                               # @user, #tag
    NUMBER,
    r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}",                                     # 12/25/2013
    r"(?:\d{1,4}[-\u00a0 ])?\d{1,4}(?:\\?/|\u2044)\d{1,4}",               # "2 1/2" is one token
    r"(?:\(\d{2,3}\)[\u00a0 ]?|(?:\+\+?)?(?:\d{2,4}[-\u00a0 ])?\d{2,4}[-\u00a0 ])"
    r"\d{3,4}[-\u00a0 ]?\d{3,5}"                                          # telephone numbers
    r"|(?:(?:\+\+?)?\d{2,4}\.)?\d{2,4}\.\d{3,4}\.\d{3,5}",
    r"[A-Z]*\$|[\u00a2-\u00a4\u20ac]",
    rf"(?i:(?:ed|ph)\.d|{ABBREVIATIONS})\.|(?:{STATES}|{STATES.upper()})\.",
    r"[A-Za-z](?:\.[A-Za-z])*\.",                                         # a.m., U.S., J.
    r"((?i:art|ca|figs?|nos?|op|pp|prop)\.) ?\d",                         # no. 5, but: oh no | .
    rf"({ALNUM}+(?:\.{ALNUM}+)*\.(?i:{ENDINGS}))(?:[\s.?!,]|$)",          # 1.jpg
    rf"((?:{WORD}|{HYPHENED}|{NUMBER})\.)[,;:]",                          # pitfall: "a dog., a cat"
    r"</?[A-Za-z][\w:.-]*(?: +[A-Za-z][\w:.-]*(?: *= *['\"][^'\"]*['\"])?)* */? *>"
    r"|<[!?][A-Za-z-][^>]*>",                                             # <b>, <!-- -->
    r"([<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]])(?:[^A-Za-z]|$)",              # :-)
    r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\)",  # ^_^
    "&(?:lt|gt|quot|apos|nbsp|mdash|ndash|#[0-9]+);",
    r"[?!]+|-+|\.{3,5}|(?:\.[\u00a0 ]){2,4}\.|\*+|@+|#+|_+|<<|>>|''|``",
    # Any other sign is a token of its own; what is not in here (emoji, say) vanishes.
    "[!-~\u0e3f\u00a1-\u00a9\u00ab\u00ac\u00ae-\u00b4\u00b6-\u00b9\u00bb-\u00bf\u00d7\u00f7"
    "\u2013-\u2023\u2026\u2030-\u203b\u203e-\u2042\u2070-\u208e\u2100-\u214f\u2153-\u215e"
    "\u2190-\u2bff\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]",
)]
# Tokens that come out in another form, and those that stand for nothing here and are dropped.
NORMAL = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "&lt;": "<", "&gt;": ">",
          "\u00a3": "#", "\u20ac": "$", "\u00a4": "$", "\u00a2": "cents", "\u00bc": "1/4",
          "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3", "n\u2018t": "n`t",
          **{apos + end: "'" + end for apos in ("\u2019", "&apos;")
             for end in ("s", "m", "d", "re", "ve", "ll")},
          **{f"n{apos}t": "n't" for apos in ("\u2019", "&apos;")}}
DROPPED = {*"'\"`.?!,:;-\u2013\u2014\u2015\u2018\u2019\u201b\u201c\u201d\u00ab\u00bb\u2039"
             "\u203a\u2026", "''", "``", "--", "---", "----",
           "&quot;", "&apos;", "&nbsp;", "&mdash;", "&ndash;"}
PLAIN = re.compile("(?!(?i:cannot|gonna|gotta|lemme|gimme|wanna) )[A-Za-z]+(?= )")


def tokenize(text):
    """A caption as the list of tokens that BLEU, ROUGE-L and CIDEr-D compare.

    Meant to give what Stanford's PTBTokenizer 3.4.1 gives with -preserveLines -lowerCase, after
    pycocoevalcap has dropped the punctuation; written from what it does to thousands of strings.
    pitfall: brackets become words (-lrb-), "!!!" and "?!" stay, while "!" and "?" go.
    """
    # Soft hyphens are dropped; entities occur in captions that were copied from web pages.
    text = text.replace("\n", " ").replace("\u00ad", "").replace("&amp;", "&")
    i, tokens = 0, []
    while i < len(text):
        matches = (m for rule in RULES if (m := rule.match(text, i)))
        match = PLAIN.match(text, i) or max(matches, key=lambda m: m.end(), default=None)
        if not match:  # white space, or a character that the Stanford tokenizer does not know
            i += 1
            continue
        token = match[match.lastindex or 0]
        i += len(token)
        # pitfall: the space in "2 1/2" becomes a non-breaking one; str.split() still splits there.
        token = token.lower().replace(" ", "\u00a0")
        if token not in DROPPED and token.strip(".\u00a0"):
            tokens.append(NORMAL.get(token) or token.replace("(", "-lrb-").replace(")", "-rrb-"))
    return tokens
