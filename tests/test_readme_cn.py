"""README_cn.md is in step with README.md: the same sections, code, tables, links and numbers, in Chinese words."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest

T = TypeVar("T")
ROOT = Path(__file__).parent.parent

CHINESE = re.compile(r"[\u3400-\u9fff]")
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"!?\[([^\]]*)\]\(([^)\s]+)\)")
NUMBER = re.compile(r"(?<![A-Za-z0-9_.,/-])\d+(?:,\d{3})*(?:\.\d+)?(?:%| ?[KMG]i?B(?![A-Za-z]))?")
COMMENT = re.compile(r"(^|\s)#\s.*$")


@dataclass
class Section:
    """A heading and what stands below it, up to the next heading of any level."""

    level: int
    title: str
    code: list[list[str]] = field(default_factory=list)  # the lines of each block, its fence's language first
    rows: list[list[str]] = field(default_factory=list)  # the cells of each row, of all tables
    paragraphs: list[str] = field(default_factory=list)  # of all other text; an item of a list is one

    def __str__(self) -> str:
        return f"{'#' * self.level} {self.title}"

    @property
    def prose(self) -> str:
        return "\n".join([*self.paragraphs, *(cell for row in self.rows for cell in row)])


def sections(document: str) -> list[Section]:
    found: list[Section] = []
    fenced = False
    before = ""
    for line in document.splitlines():
        if line.startswith("```"):
            fenced = not fenced
            if fenced:
                found[-1].code.append([line])
        elif fenced:
            found[-1].code[-1].append(line)
        elif heading := re.match(r"(#+) (.*)", line):
            found.append(Section(len(heading[1]), heading[2].strip()))
        elif line.startswith("|"):
            found[-1].rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif line and (not before or before.startswith(("|", "#", "```")) or line.startswith("- ")):
            found[-1].paragraphs.append(line)
        elif line:
            found[-1].paragraphs[-1] += f" {line}"
        before = line
    return found


def facts(text: str) -> Counter[str]:
    """What a translation keeps: code spans, and numbers with their percent sign or unit of bytes."""
    spans = [f"`{' '.join(span.split())}`" for span in SPAN.findall(text)]
    words = LINK.sub(r"\1", SPAN.sub(" ", text))
    return Counter(spans + NUMBER.findall(words))


def targets(section: Section, titles: Sequence[str]) -> Counter[str]:
    """Where a section's links and images lead; a heading of the document itself by its place, as its words differ."""
    places = {f"#{anchor}": f"#(heading {place})" for place, anchor in enumerate(anchors(titles), 1)}
    found = [target for _, target in LINK.findall(section.prose)]
    other_language = {"README.md": "the other language", "README_cn.md": "the other language"}
    found = [re.sub(r"-zh(?=\.png$)", "", target) for target in found]  # a picture of the page in the reader's language
    return Counter((places | other_language).get(target, target) for target in found)


def anchors(titles: Sequence[str]) -> list[str]:
    """GitHub's rule: lower case, punctuation (full-width, too) dropped, spaces to hyphens, repeated ones numbered."""
    seen: Counter[str] = Counter()
    found = []
    for title in titles:
        slug = re.sub(r"[^\w\- ]", "", LINK.sub(r"\1", title).lower()).replace(" ", "-")
        found.append(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


# --- which part belongs to which ---


def likeness(a: Counter[str], b: Counter[str]) -> float:
    """The share of facts that both have, from 0 to 1."""
    return (a & b).total() / (a | b).total() if a or b else 1.0


def alike_sections(a: Section, b: Section) -> float:
    def content(section: Section) -> Counter[str]:
        return facts(section.prose) + Counter(COMMENT.sub("", line) for block in section.code for line in block[1:])

    return likeness(content(a), content(b)) if a.level == b.level else 0


def alike_paragraphs(a: str, b: str) -> float:
    return likeness(facts(a), facts(b))


def alike_rows(a: list[str], b: list[str]) -> float:
    return 0.5 * same_first_cell(a, b) + 0.5 * likeness(facts(" | ".join(a)), facts(" | ".join(b)))


def same_first_cell(a: list[str], b: list[str]) -> bool:
    """Words may be translated, routes, settings, names and numbers may not."""
    return facts(a[0]) == facts(b[0]) if CHINESE.search(b[0]) else a[0] == b[0]


def aligned(
    left: Sequence[T], right: Sequence[T], alike: Callable[[T, T], float]
) -> tuple[list[tuple[T, T]], list[T], list[T]]:
    """The pairs that together are most alike, in the order of both, and what has none on the left and on the right."""

    @cache
    def best(i: int, j: int) -> tuple[float, tuple[tuple[int, int], ...]]:
        if i == len(left) or j == len(right):
            return 0.0, ()
        choices = [best(i + 1, j), best(i, j + 1)]
        if (score := alike(left[i], right[j])) > 0.3:
            rest, pairs = best(i + 1, j + 1)
            choices.insert(0, (score + rest, ((i, j), *pairs)))
        return max(choices, key=lambda choice: choice[0])

    _, pairs = best(0, 0)
    alone_left = [part for i, part in enumerate(left) if i not in {i for i, _ in pairs}]
    alone_right = [part for j, part in enumerate(right) if j not in {j for _, j in pairs}]
    return [(left[i], right[j]) for i, j in pairs], alone_left, alone_right


# --- what differs ---


def differences(english: str, chinese: str) -> list[str]:
    """A line for each part that one README has and the other lacks."""
    ours, theirs = sections(english), sections(chinese)
    pairs, missing, surplus = aligned(ours, theirs, alike_sections)
    found = [f"README_cn.md lacks the section “{section}” of README.md" for section in missing]
    found += [f"README_cn.md has the section “{section}”, README.md has none like it" for section in surplus]
    for a, b in pairs:
        mine, other = (targets(part, [section.title for section in whole]) for part, whole in ((a, ours), (b, theirs)))
        parts = [*code_differences(a, b), *row_differences(a, b), *text_differences(a, b)]
        parts += counted("the list of links", mine, other)
        found += [f"“{a}” (“{b}”): {part}" for part in parts]
    return found


def code_differences(a: Section, b: Section) -> Iterator[str]:
    if len(a.code) != len(b.code):
        yield f"{len(a.code)} blocks of code in README.md, {len(b.code)} in README_cn.md"
    for number, (ours, theirs) in enumerate(zip(a.code, b.code, strict=False), 1):
        bare = [[COMMENT.sub(" # (a comment)", line) for line in block] for block in (ours, theirs)]
        for line, other in zip(*bare, strict=False):
            if line != other:
                yield f"in block {number} of code README.md has “{line}”, README_cn.md “{other}”"
        if len(ours) != len(theirs):
            yield f"block {number} of code has {len(ours) - 1} lines in README.md, {len(theirs) - 1} in README_cn.md"


def row_differences(a: Section, b: Section) -> Iterator[str]:
    pairs, missing, surplus = aligned(a.rows, b.rows, alike_rows)
    yield from (f"README_cn.md lacks the row “{row[0]}”" for row in missing)
    yield from (f"README_cn.md has the row “{row[0]}”, README.md has none like it" for row in surplus)
    for ours, theirs in pairs:
        name = f"the row “{ours[0] or ' | '.join(ours)}”"
        if not same_first_cell(ours, theirs):
            yield f"{name} begins with “{theirs[0]}” in README_cn.md"
        if len(ours) != len(theirs):
            yield f"{name} has {len(ours)} cells in README.md, {len(theirs)} in README_cn.md"
        for cell, other in zip(ours[1:], theirs[1:], strict=False):
            yield from counted(name, facts(cell), facts(other))


def text_differences(a: Section, b: Section) -> Iterator[str]:
    pairs, missing, surplus = aligned(a.paragraphs, b.paragraphs, alike_paragraphs)
    yield from (f"README_cn.md lacks the paragraph “{text[:60]}…”" for text in missing)
    yield from (f"README_cn.md has the paragraph “{text[:60]}…”, README.md has none like it" for text in surplus)
    for ours, theirs in pairs:
        yield from counted(f"the paragraph “{ours[:60]}…”", facts(ours), facts(theirs))


def counted(place: str, ours: Counter[str], theirs: Counter[str]) -> list[str]:
    found = [f"{place} in README_cn.md lacks {fact}" for fact in (ours - theirs).elements()]
    return found + [f"{place} in README_cn.md has {fact}, README.md does not" for fact in (theirs - ours).elements()]


def broken_links(name: str, folder: Path) -> Iterator[str]:
    """Links of a document to files and headings that are not there."""
    text = (folder / name).read_text()
    for section in sections(text):
        for target in targets(section, []):
            path, _, anchor = target.partition("#")
            file = folder / (path or name)
            if re.match(r"\w+:|the other language", target):
                continue
            if not file.exists():
                yield f"{name}: “{section}” links to {target}, and there is no such file"
            elif anchor and anchor not in anchors([part.title for part in sections(file.read_text())]):
                yield f"{name}: “{section}” links to {target}, and {file.name} has no such heading"


# --- the two READMEs ---


def test_the_chinese_readme_is_in_step_with_the_english_one() -> None:
    found = differences((ROOT / "README.md").read_text(), (ROOT / "README_cn.md").read_text())
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("name", ["README.md", "README_cn.md"])
def test_a_readmes_links_lead_somewhere(name: str) -> None:
    found = list(broken_links(name, ROOT))
    assert not found, "\n" + "\n".join(found)


def test_each_readme_names_the_other_below_its_title() -> None:
    assert (ROOT / "README.md").read_text().splitlines()[2] == "**English** · [简体中文](README_cn.md)"
    assert (ROOT / "README_cn.md").read_text().splitlines()[2] == "[English](README.md) · **简体中文**"


def test_everything_in_the_chinese_readme_is_said_in_chinese() -> None:
    """Paragraphs and the last cells of rows; not those that are routes, numbers and names alone."""
    for section in sections((ROOT / "README_cn.md").read_text()):
        for line in [*section.paragraphs, *(row[-1] for row in section.rows)]:
            words = re.findall(r"[A-Za-z]+", LINK.sub("", SPAN.sub("", line)))
            assert CHINESE.search(line) or len(words) < 4, f"“{section}” has a line without Chinese: {line}"


# --- the comparison itself, on a small pair ---

ENGLISH = """\
# Name

**English** · [简体中文](README_cn.md)

## Start

Takes 5 s; `up` 1;
see [how](#all-settings). ![A curve](curve.png)

Words alone.

```sh
make demo  # trains
make test
```

## All settings

| variable | default | |
|---|---|---|
| `PORT` | `8000` | Port; 0 takes a free one. |
| Descent, 2 threads | 461 MB | 88.3% |
| sgd | none | Of up to 3. |
"""

TRANSLATED = """\
# Name

[English](README.md) · **简体中文**

## 开始

需要 5 秒；`up` 1；[方法](#全部设置)。![曲线](curve.png)

只有文字。

```sh
make demo  # 训练
make test
```

## 全部设置

| 变量 | 默认值 | |
|---|---|---|
| `PORT` | `8000` | 端口；0 表示任取一个空闲端口。 |
| Descent，2 线程 | 461 MB | 88.3% |
| sgd | 无 | 最多 3 个。 |
"""


def test_a_translation_in_step_has_no_differences() -> None:
    assert differences(ENGLISH, TRANSLATED) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        pytest.param("## 开始", "### 开始", "lacks the section “## Start”", id="a heading of another level"),
        pytest.param(
            TRANSLATED[TRANSLATED.index("## 全部") :], "", "lacks the section “## All settings”", id="a section"
        ),
        pytest.param(
            "## 全部设置", "## 另外\n\n`x` 7\n\n## 全部设置", "has the section “## 另外”", id="a section too many"
        ),
        pytest.param(
            "make test\n", "", "block 1 of code has 2 lines in README.md, 1 in README_cn.md", id="a line of code"
        ),
        pytest.param("make demo ", "make dem ", "README.md has “make demo  # (a comment)”", id="code"),
        pytest.param(
            "  # 训练", "", "README.md has “make demo  # (a comment)”, README_cn.md “make demo”", id="a comment"
        ),
        pytest.param("| sgd | 无 | 最多 3 个。 |\n", "", "lacks the row “sgd”", id="a row"),
        pytest.param("| sgd | 无 |", "| SGD | 无 |", "the row “sgd” begins with “SGD”", id="a first cell"),
        pytest.param("2 线程", "4 线程", "lacks the row “Descent, 2 threads”", id="a number in a first cell"),
        pytest.param(
            "| sgd | 无 |", "| sgd | 无 | 无 |", "the row “sgd” has 3 cells in README.md, 4", id="a cell too many"
        ),
        pytest.param("88.3%", "88.8%", "the row “Descent, 2 threads” in README_cn.md lacks 88.3%", id="a percentage"),
        pytest.param("461 MB", "461 GB", "lacks 461 MB", id="a unit"),
        pytest.param("`8000`", "`8001`", "the row “`PORT`” in README_cn.md lacks `8000`", id="a default"),
        pytest.param("5 秒", "6 秒", "A curve](curv…” in README_cn.md lacks 5", id="a number in the text"),
        pytest.param("\n只有文字。\n", "", "lacks the paragraph “Words alone.…”", id="a paragraph"),
        pytest.param("只有文字。", "多 `x`。", "has the paragraph “多 `x`。…”", id="another paragraph"),
        pytest.param("curve.png", "kurve.png", "the list of links in README_cn.md lacks curve.png", id="an image"),
        pytest.param("#全部设置", "#开始", "lacks #(heading 3)", id="a link to another heading"),
    ],
)
def test_what_differs_is_named(old: str, new: str, said: str) -> None:
    assert TRANSLATED.count(old) == 1
    assert said in "\n".join(differences(ENGLISH, TRANSLATED.replace(old, new)))


def test_anchors_are_githubs() -> None:
    titles = ["With Docker", "三种用法，三条 curl 命令", "API（全部）", "`up` & down", "密钥", "密钥"]
    assert anchors(titles) == ["with-docker", "三种用法三条-curl-命令", "api全部", "up--down", "密钥", "密钥-1"]


def test_a_link_to_a_heading_or_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "README_cn.md").write_text(
        "# 标题\n\n[一](#标题) [二](#别处) [三](gone.md) [四](https://example.org/#x)\n"
    )
    first, second = broken_links("README_cn.md", tmp_path)
    assert "links to #别处, and README_cn.md has no such heading" in first
    assert "links to gone.md, and there is no such file" in second
