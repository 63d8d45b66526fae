"""What tests/test_kernels.py runs in a process of its own: the kernels, compiled for a card that is not here.

python tests/compile_kernels.py 90:kl 100:js    # of compute capability 9.0; prints what is machine code then
"""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dskd.nn import kernel_rows, kernels

POINTERS = {"teacher", "student", "gradient", "items", "logits", "probs", "largest", "log_sum"}
BLOCK = 256


def compiled(name: str, card: int, constants: dict[str, object]) -> bool:
    """Whether there is machine code for it."""
    kernel = getattr(kernel_rows, name)
    types = {one: "*fp32" if one in POINTERS else "i32" for one in kernel.arg_names}
    types |= {one: "fp32" for one in ("factor", "mix") if one in types} | dict.fromkeys(
        constants, "constexpr"
    )
    source = ASTSource(fn=kernel, signature=types, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", card, 32), options=dict(kernels.OPTIONS))
    return len(made.asm["cubin"]) > 0


if __name__ == "__main__":
    for asked in sys.argv[1:]:
        card, _, divergence = asked.partition(":")
        for name, constants in {"divergence_rows": {"NAME": divergence}, "softmax_rows": {}}.items():
            if compiled(name, int(card), {**constants, "BLOCK": BLOCK}):
                print(card, name)
