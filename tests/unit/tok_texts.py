"""Random texts that are hard on tokenizers, each made from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

TEXTS = Path(__file__).parents[1] / "data" / "text"
LINES = """Đây là một câu tiếng Việt có dấu, khá dài
我们今天去北京看长城，明天回来。価格は3,500円です（税込）
ここでは、カタカナとひらがなを「混ぜて」書きます。ｶﾀｶﾅ ＡＢＣ１２３！
대한민국의 수도는 서울이며, 인구는 약 940만 명이다.
Съешь же ещё этих мягких французских булок, да выпей чаю: 2 раза.
مرحبا بالعالم، هذا نصٌّ عربيٌّ مُشكَّل رقم ١٢٣٤
שָׁלוֹם עוֹלָם, זה טקסט בעברית
हिन्दी में यह एक वाक्य है। १२३ किताबें
ภาษาไทยไม่มีช่องว่างระหว่างคำ ๑๒๓๔๕
Ελληνικά: ΄Ολα τα ωραία 'ναι ΜΕΓΑΛΑ, ώ!
ქართული ენა ᲥᲐᲠᲗᲣᲚᲘ հայերեն ՀԱՅԵՐԵՆ ᏣᎳᎩ ꮳꮃꭹ
Straße, ŒUVRE, ĳsselmeer Ǆungla ǅ ﬁne ﬆop ſee'ſ we'LL İstanbul ıssız
தமிழ் ಕನ್ನಡ తెలుగు മലയാളം සිංහල ខ្មែរ ລາວ မြန်မာ ᠮᠣᠩᠭᠣᠯ አማርኛ""".splitlines()
CODE = r'''def f(x: int) -> list[str]:
    return [f"{x:>8}" for _ in range(0x1F)]  # noqa: E501
int main(void) { for (int i=0;i<10;++i) printf("%d\n", a[i]); /* ***** */ }
SELECT * FROM t WHERE a <> 'it''s' AND b >= 1e-9;
<div class="x-y" id='z'>&nbsp;</div><!-- </> -->
	if [ $# -lt 2 ]; then echo "$0: usage" >&2; exit 1; fi
{"a": [1, 2.5, -3e+10, null], "b/c": "\u00e9\\n"}
https://example.org/a_b/c?d=e&f=%20#g ../../x//y\\z ==> !== === ... --- ___'''.splitlines()
SPACE = [" ", "  ", "   ", "\n", "\n\n", "\r\n", "\r", "\t", "\t\t", " \n", "\n ", "\u00a0", "\u3000", "\u2009", "\x0b", "\x0c", "\u2028",
         "\x85", "\u1680", "\u202f", "\u200b", "\ufeff"]
EMOJI = ["🦙", "👩‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "🇩🇪", "❤️", "☎️", "1️⃣", "🚀", "😶‍🌫️", "©", "™", "✅"]
MARKS = [chr(c) for c in (*range(0x300, 0x330), 0x20d0, 0x20e3, 0xfe0f, 0x5b0, 0x93e, 0x94d, 0x1ab0, 0x0e34, 0x3099)]
DIGITS = ["0", "1", "23", "456", "7890", "12345", "1234567", "٣", "१२", "½", "²", "Ⅷ", "৪", "〇", "１２", "𝟙𝟚", "③"]
TAILS = ["s", "t", "re", "ve", "m", "ll", "d", "S", "T", "Re", "VE", "M", "lL", "D", "ſ", "n", "st", "x", " s", "'", "1"]
WORDS = ["don", "I", "we", "Über", "HTTP", "getValue", "snake_case", "CamelCASEWord", "naïve", "x", "ǅ", "中", "ªº", "ʰʷ", "\u0345a"]
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<s>", "</s>", "<unk>", "<0x0A>", "<fim_prefix>", "<|im_", "<|",
            "|>", "<<s>>", "<|begin_of_text|>", "<start_of_turn>", "[INST]", "▁", "Ġ", "<|fim▁begin|>", ">>TITLE<<"]


def _code_point(r: random.Random) -> str:
    top = r.choice([0x7F, 0xFF, 0x24F, 0x7FF, 0x2FFF, 0xD7FF, 0xFFFF, 0x1FFFF, 0x10FFFF])
    c = r.randint(0, top)
    return chr(c) if not 0xD800 <= c < 0xE000 else "\ufffd"


def _corpus() -> list[str]:
    return [line for f in sorted(TEXTS.glob("*.txt")) for line in f.read_text("utf-8").splitlines() if line]


CORPUS = _corpus()


def _piece_of(r: random.Random, line: str) -> str:
    a = r.randrange(len(line))
    return line[a:a + r.randint(1, 60)]


PIECES: list[Callable[[random.Random], str]] = [
    lambda r: "".join(_code_point(r) for _ in range(r.randint(1, 8))),
    lambda r: _piece_of(r, r.choice(LINES)),
    lambda r: _piece_of(r, r.choice(CODE)),
    lambda r: _piece_of(r, r.choice(CORPUS)),
    lambda r: "".join(r.choice(SPACE) for _ in range(r.randint(1, 6))),
    lambda r: r.choice(EMOJI) + (r.choice(["\u200d", "\ufe0f", ""]) + r.choice(EMOJI) if r.random() < 0.3 else ""),
    lambda r: r.choice(["", " ", "a"]) + "".join(r.choice(MARKS) for _ in range(r.randint(1, 5))),
    lambda r: r.choice(["", " ", ",", "\n"]) + "".join(r.choice(DIGITS) for _ in range(r.randint(1, 3))),
    lambda r: r.choice(WORDS) + r.choice(["'", "'", "’", "''"]) + r.choice(TAILS),
    lambda r: r.choice(SPECIALS),
    lambda r: chr(r.choice([*range(32), *range(0x7F, 0xA0), 0xAD, 0x34F, 0x200E, 0xFFFC, 0xFFFD, 0xFFFF, 0xE000, 0x10FFFF])),
    lambda r: "".join(r.choice("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~…—“”«»。、！￥€§¶") for _ in range(r.randint(1, 5))),
    lambda r: r.choice([" ", " ", "", "\n"]) + r.choice(WORDS),
]


def texts(seed: int, n: int) -> Iterator[str]:
    """n texts of up to ten pieces; the same for the same seed."""
    r = random.Random(seed)
    for _ in range(n):
        yield "".join(r.choice(PIECES)(r) for _ in range(r.randint(1, 10)))
