"""Textual steps that make CUDA C++ acceptable to a host compiler; all else is macros in cuda_emu.h."""
from __future__ import annotations

import re

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[^\n]*', re.M)
DEFINE = re.compile(r'^[ \t]*#[ \t]*define[ \t]+(\w+)', re.M)
DYNAMIC = re.compile(r'extern\s+__shared__\s+(?:__align__\s*\(\s*\d+\s*\)\s+)?([\w:]+(?:\s+[\w:]+)*?)\s+(\w+)\s*\[\s*\]\s*;')
STATIC = re.compile(r'__shared__\s+(?:(?:__align__|alignas)\s*\(\s*\d+\s*\)\s+)?((?:[\w:]+|\*|<[^;>]*>|\s)+?)\s*\b(\w+)\s*((?:\[[^\]]*\]\s*)*);')
COOPERATIVE = re.compile(r'__sync|__shfl|__ballot|__any_sync|__all_sync|__match|__shared__|\b(?:mma|async|block|warp)_\w+\s*[(<]')


def is_cooperative(text: str) -> bool:
    """Whether the threads of a block talk to each other; if not, they can run one after another in a plain loop."""
    return COOPERATIVE.search(text) is not None


def translate(symbol: str, text: str) -> str:
    """One kernel text in a namespace of its own; `#line` keeps the numbers of the original text."""
    body = INCLUDE.sub("", text)
    body = DYNAMIC.sub(r"\1* \2 = (\1*)emu.dynamic;", body)
    body = STATIC.sub(r"static char emu_key_\2; auto& \2 = emu_shm<\1\3>(&emu_key_\2);", body)
    undo = "".join(f"#undef {name}\n" for name in dict.fromkeys(DEFINE.findall(text)))
    return f'namespace in_{symbol} {{\n#line 1 "{symbol}.cu"\n{body}\n}}\n{undo}'
