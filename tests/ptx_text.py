"""PTX text to instructions: the entry of a module, its parameters, shared arrays, registers and labels."""
from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
PARAMETER = re.compile(r"\.param\s+\.(\w+)\s+(\w+)")
SHARED = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+([\w$]+)\[(\d*)\]")
REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+([^;]+);")
INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.S)
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*")


@dataclass(frozen=True)
class Instruction:
    """`@[!]guard op operands`; `op` in its parts, operands as texts."""

    text: str
    op: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str | None
    negated: bool

    @cached_property
    def name(self) -> str:
        return self.op[0]


@dataclass
class Entry:
    """`shared`: symbol -> offset; the dynamic array, if any, comes last, at `shared_bytes`."""

    name: str
    parameters: list[tuple[str, str]] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    classes: dict[str, str] = field(default_factory=dict)
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def class_of(self, register: str) -> str:
        """b16, b32, b64, f32, f64 or pred."""
        return self.classes.get(register) or self.classes[re.sub(r"\d+$", "", register)]


def parse(text: str) -> Entry:
    """The first entry of a module."""
    text = COMMENT.sub("", text)
    head = re.search(r"\.entry\s+(\w+)\s*\(([^)]*)\)", text)
    if head is None:
        raise ValueError("the text has no entry")
    body = _braces(text, text.index("{", head.end()))
    entry = Entry(head[1], [(m[2], m[1]) for m in PARAMETER.finditer(head[2])])
    _shared(entry, text[:head.start()] + body)
    for m in REGISTERS.finditer(body):
        for name in m[2].split(","):
            entry.classes[re.sub(r"<\d+>", "", name.strip())] = m[1]
    _code(entry, body)
    return entry


def _braces(text: str, start: int) -> str:
    depth = 0
    for k in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[k], 0)
        if depth == 0:
            return text[start + 1:k]
    raise ValueError("the entry does not end")


def _shared(entry: Entry, text: str) -> None:
    dynamic = []
    for m in SHARED.finditer(text):
        if not m[3]:
            dynamic.append(m[2])
        elif m[2] not in entry.shared:
            entry.shared_bytes = -(-entry.shared_bytes // 128) * 128
            entry.shared[m[2]] = entry.shared_bytes
            entry.shared_bytes += int(m[3])
    entry.shared_bytes = -(-entry.shared_bytes // 128) * 128
    entry.shared.update((name, entry.shared_bytes) for name in dynamic)


def _code(entry: Entry, body: str) -> None:
    body = re.sub(r"^\s*([$\w]+):(?!:)", r"LABEL \1;", body, flags=re.M)
    for statement in body.split(";"):
        statement = statement.strip()
        if statement.startswith("LABEL "):
            entry.labels[statement[6:]] = len(entry.code)
        elif statement and not statement.startswith("."):
            m = INSTRUCTION.fullmatch(statement)
            if m is None:
                raise ValueError(f"not an instruction: {statement!r}")
            operands = tuple(o.strip() for o in OPERAND.findall(m[4]))
            entry.code.append(Instruction(" ".join(statement.split()), tuple(m[3].split(".")), operands, m[2], m[1] == "!"))
