"""The deployment proof: an emulated Raspberry Pi B+ boots, and makes the masks that this machine makes."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from mednca.synthetic import phantom
from tests.runtime.builds import SOURCE, built, need, succeeded

TRAINED = Path(__file__).resolve().parents[1] / "golden/two_levels.safetensors"
sys.path.insert(0, str(SOURCE.parent / "pi"))


def fnv(content: bytes) -> str:
    value = 0xCBF29CE484222325
    for byte in content:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


@pytest.mark.slow
def test_a_raspberry_pi_b_plus_makes_the_masks_of_this_machine(tmp_path: Path) -> None:
    import boot

    need("qemu-system-arm", "qemu-system-arm")
    if not list(boot.KERNEL.glob("boot/vmlinuz-*")) and not shutil.which("apt-get"):
        pytest.skip("needs Debian's kernel for the Pi, and apt-get to fetch it")
    built("armv6")
    image, _, _ = phantom(2)  # two slices in which the model finds something
    scan, model = tmp_path / "scan.nii", TRAINED
    nibabel.save(nibabel.Nifti1Image(image[:, :, 4:6].astype(np.float32), np.eye(4)), scan)
    said = boot.boot(model, scan)
    assert re.search(r"ARMv6-compatible processor", said) and "Hardware\t: BCM2835" in said
    assert said.count("status 0") == 4
    for name, options in {"fp32": (), "int16": ("--int16",)}.items():
        out = tmp_path / f"{name}.nii"
        here = succeeded(model, scan, "-o", out, *options)
        count = int(re.findall(r"(\d+) foreground", here)[0])
        (there,) = re.findall(rf"/{name}.nii: (\d+) foreground", said)
        assert count > 100 and abs(int(there) - count) <= 3, "fp32 is rounded otherwise there"
    assert f"hash /int16.nii {fnv(out.read_bytes())}" in said, said
    memory = re.findall(r"^memory +([\d.]+) MB", said, re.M)
    assert len(memory) == 2 and max(map(float, memory)) <= 24  # 320 x 320, int16 and fp32
