"""The model of the ARM1176 behind the estimate takes as many cycles as the processor's manual says (ARM DDI
0301H: the examples of table 16-3, tables 16-10, 16-16 and 16-18, and 21-16)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.builds import SOURCE

sys.path.insert(0, str(SOURCE.parent / "pi"))

#: Sets vectors of four, with flush to zero and default NaN; a second write would set one number again.
VECTORS = "mov r0, #0x03000000; orr r0, r0, #0x00030000; vmsr fpscr, r0"
CASES = {
    "loads are not waited for in vain": ("", "ldr r1, [r2]; add r6, r5, r4", 2),
    "a load's result": ("", "ldr r1, [r2]; add r6, r5, r1", 4),
    "an address just computed": ("", "add r1, r5, r2; ldr r3, [r1]", 3),
    "an address just loaded": ("", "ldr r1, [r2]; ldr r5, [r1]", 5),
    "a shift by a register": ("", "add r6, r5, r4, lsl r3", 2),
    "a product that is added to": ("", "smlad r6, r5, r4, r6", 2),
    "products that are not": ("", "smlad r6, r5, r4, r6; smlad r7, r5, r4, r7", 2),
    "a loaded factor": ("", "ldr r1, [r2]; smlad r6, r5, r1, r6", 5),
    "two words at a time": ("", "ldrd r6, r7, [r2]; ldrd r8, r9, [r2]", 2),
    "four words take two cycles of the port": ("", "ldm r2, {r6-r9}; ldm r2, {r6-r9}", 4),
    "a sum of single precision": ("", "vadd.f32 s0, s0, s1", 8),
    "products of double precision": ("", "; ".join(f"vmul.f64 d{i}, d5, d6" for i in range(5)), 10),
    "loads of the floating-point unit": (
        "",
        "vldmia r2, {s0-s3}; vldmia r2, {s4-s7}; vldmia r2, {s8-s11}",
        6,
    ),
    "vectors": (VECTORS, "vmla.f32 s16, s8, s0; vmla.f32 s20, s8, s0; vmla.f32 s24, s8, s0", 12),
    "a vector that waits for all of an earlier one": (VECTORS, "vmla.f32 s16, s8, s0", 11),
    "loads in the shadow of vectors": (
        VECTORS,
        "vmla.f32 s16, s8, s0; vldmia r2, {s1-s4}; vmla.f32 s20, s8, s0; vmla.f32 s24, s8, s0; "
        "vldmia r2, {s12-s15}",
        12,
    ),
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plugin for qemu-arm."""
    import estimate

    if estimate.missing():
        pytest.skip(estimate.missing())
    path = tmp_path_factory.mktemp("plugin") / "arm1176.so"
    estimate.run(["cc", "-O2", "-shared", "-fPIC", str(estimate.PI / "arm1176.c"), "-o", str(path)])
    return path


@pytest.mark.parametrize("name", CASES)
def test_cycles_are_those_of_the_manual(name: str, plugin: Path, tmp_path: Path) -> None:
    import estimate

    before, code, cycles = CASES[name]
    found = []
    for repeats in (100, 300):
        source, program, told = tmp_path / "code.s", tmp_path / "code", tmp_path / "told"
        lines = "\n".join(f"{before}; .rept {repeats}; {code}; .endr".split("; "))
        source.write_text(
            f".syntax unified\n.arm\n.fpu vfp\n.globl _start\n_start:\nmov r5, #0\n"
            f"ldr r2, =words\nb 1f\n.ltorg\n1:\n{lines}\n"
            "mov r0, #0\nmov r7, #1\nsvc #0\n.balign 8\nwords: .word words, 0, 0, 0, 0\n"
        )
        estimate.run(
            ["arm-linux-gnueabi-gcc", "-march=armv6", "-nostdlib", "-static", str(source), "-o", str(program)]
        )
        done = subprocess.run(
            ["qemu-arm", "-cpu", "arm1176", "-plugin", f"{plugin},out={told}", str(program)], check=False
        )
        assert done.returncode == 0
        words = told.read_text().split()
        found.append(int(words[words.index("cycles") + 1]))
    assert (found[1] - found[0]) / 200 == pytest.approx(cycles, abs=0.02)
